"""What routers do with tokens, as figures and tables; and pictures of what a run measured."""
