"""`--mode=eval`: a trained model on its own data set, or on another one."""
