//! Heads that a checkpoint lacks.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use peft_core::{Init, MapParams, ModelSpec, ParamKind, PathStack, map_params};

/// Gives parameters that no checkpoint holds their starting values: weights are N(0, `std`), those of norms 1, biases 0.
///
/// `absent` are their paths, as [`LoadReport::missing`](peft_core::LoadReport::missing) has them. The same seed draws the
/// same numbers on every device and in every version.
pub fn draw_missing<M: Module>(model: M, absent: &[String], std: f64, seed: u64, device: &Device) -> M {
    if absent.is_empty() {
        return model;
    }
    let spec = ModelSpec::of(&model);
    map_params(model, &mut DrawMissing { spec: &spec, absent, std, seed, device })
}

struct DrawMissing<'a> {
    spec: &'a ModelSpec,
    absent: &'a [String],
    std: f64,
    seed: u64,
    device: &'a Device,
}

impl MapParams for DrawMissing<'_> {
    fn float<const D: usize>(&mut self, at: &PathStack, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = at.path();
        let Some(spec) = self.spec.get(&path).filter(|_| self.absent.contains(&path)) else { return param };
        // Running statistics start as their layer has them.
        if spec.kind == ParamKind::Buffer {
            return param;
        }
        let shape: [usize; D] = std::array::from_fn(|axis| spec.shape[axis]);
        let mut init = Init::new(self.seed, "base", spec, self.device);
        let start = match (spec.name.as_str(), D) {
            ("bias", _) => init.constant(shape, 0.0),
            // A norm.
            (_, 1) => init.constant(shape, 1.0),
            _ => init.normal(shape, self.std),
        };
        let id = param.id;
        param.transform_for_load(start.val().detach(), id)
    }
}
