"""Build image_loader; what it is made of stands in setup.cfg."""

from setuptools import setup

setup()
