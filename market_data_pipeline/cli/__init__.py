"""`mdp`: one module a noun. Commands parse, call one use-case and print; they decide nothing."""
