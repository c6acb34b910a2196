"""The QApplication of the tests: Slicer's Fusion style in light colours, with letters on every machine."""

from __future__ import annotations

from PIL import ImageFont
from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QFont, QFontDatabase, QFontMetrics, QPalette
from PySide6.QtWidgets import QApplication, QStyleFactory


def make_application() -> QApplication:
    app = QApplication.instance() or QApplication(["Slicer"])
    app.setStyle(QStyleFactory.create("Fusion"))
    app.styleHints().setColorScheme(Qt.ColorScheme.Light)
    palette = QPalette(QColor("#efefef"))
    palette.setColor(QPalette.ColorRole.Base, QColor("white"))
    palette.setColor(QPalette.ColorRole.Highlight, QColor("#308cc6"))
    app.setPalette(palette)
    app.setFont(QFont(font_family(), 9))
    return app


def font_family() -> str:
    """The machine's own font; where it has none, the one inside Pillow."""
    if QFontMetrics(QFont()).inFont("S"):
        return QFont().family()
    font = QFontDatabase.addApplicationFontFromData(ImageFont.load_default(10).font_bytes)
    return QFontDatabase.applicationFontFamilies(font)[0]
