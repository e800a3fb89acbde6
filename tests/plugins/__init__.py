raise RuntimeError("the package file of a plugin's folder is not run")
