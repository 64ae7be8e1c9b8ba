"""Fuzz targets: `decoder`, `protocol`, `takeover`. ``nox -s fuzz`` runs them."""
