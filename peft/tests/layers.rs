//! Single layers of plain torch against `burn::nn` layers with adapters: the dense side of the weight seam.
