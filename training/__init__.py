"""Training with Lightning: whole optimiser steps over mixtures of modalities, curricula, the quickstart."""
