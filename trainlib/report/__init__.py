"""What the page of a run (`launch.report --html`) shows beside its figures."""
