"""Time series: points or patches of values in, forecasts of any horizon out."""
