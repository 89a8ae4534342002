from fgp_gpytorch._config import Configurable as Configurable
