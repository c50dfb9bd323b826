"""Topaz-Denoise in cryobench: the solver `topaz` applies the networks that the package topaz-em ships."""
