//! Starting values, drawn on the host.
//!
//! Every parameter has a generator of its own, seeded by the run's seed and the parameter's path. The values therefore
//! depend neither on the device nor on the order in which layers are built.

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::spec::ParamSpec;

/// Draws the starting values of one adapter.
#[derive(Debug)]
pub struct Init {
    rng: ChaCha8Rng,
    device: Device,
}

impl Init {
    /// A generator for the adapter `name` on a parameter.
    pub fn new(seed: u64, name: &str, param: &ParamSpec, device: &Device) -> Self {
        let stream = stable_hash(&format!("{name}\0{}", param.path()));
        Self { rng: ChaCha8Rng::seed_from_u64(seed ^ stream), device: device.clone() }
    }

    /// The device that the adapter will live on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Uniform on `[−bound, bound]`.
    pub fn uniform<const D: usize>(&mut self, shape: [usize; D], bound: f64) -> Param<Tensor<D>> {
        self.fill(shape, |rng| ((2.0 * rng.random::<f64>() - 1.0) * bound) as f32)
    }

    /// Normal with mean 0, by Box and Muller.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D], std: f64) -> Param<Tensor<D>> {
        self.fill(shape, |rng| {
            let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
            (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos() * std) as f32
        })
    }

    /// torch's `kaiming_uniform_(a = √5)`: uniform within `1 / √fan_in`.
    pub fn kaiming<const D: usize>(&mut self, shape: [usize; D]) -> Param<Tensor<D>> {
        let fan_in = shape[1..].iter().product::<usize>();
        self.uniform(shape, 1.0 / (fan_in as f64).sqrt())
    }

    /// A generator for values that are not simple draws.
    pub fn rng(&mut self) -> &mut impl Rng {
        &mut self.rng
    }

    /// 32 random bits: a seed for a generator that is not ours.
    pub fn bits(&mut self) -> u32 {
        self.rng.next_u32()
    }

    /// One value everywhere.
    pub fn constant<const D: usize>(&mut self, shape: [usize; D], value: f32) -> Param<Tensor<D>> {
        self.fill(shape, |_| value)
    }

    /// A given tensor as a trainable parameter.
    pub fn given<const D: usize>(&mut self, tensor: Tensor<D>) -> Param<Tensor<D>> {
        let data = tensor.into_data();
        self.parameter(data)
    }

    fn fill<const D: usize>(
        &mut self,
        shape: [usize; D],
        mut draw: impl FnMut(&mut ChaCha8Rng) -> f32,
    ) -> Param<Tensor<D>> {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| draw(&mut self.rng)).collect();
        self.parameter(TensorData::new(values, shape))
    }

    fn parameter<const D: usize>(&mut self, data: TensorData) -> Param<Tensor<D>> {
        let tensor = Tensor::<D>::from_data(data, &self.device);
        Param::initialized(ParamId::new(), tensor).set_require_grad(true)
    }
}

/// FNV-1a: the same on every platform and in every version, unlike the standard library's hashes.
pub fn stable_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
