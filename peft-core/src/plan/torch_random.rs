//! The random numbers that torch draws on a CPU, bit for bit.
//!
//! Some methods of the reference derive constants from torch's generator and a seed in `adapter_config.json`, and do not
//! save them: which frequencies FourierFT trains, the bases of VeRA and RandLoRA without `save_projection`. Their files
//! can be read only by whoever draws the same numbers. Sources: `ATen/core/MT19937RNGEngine.h`,
//! `ATen/core/TransformationHelper.h` and `randperm_cpu` in `ATen/native/TensorFactories.cpp`, torch 2.15.
//!
//! Nothing else here should use it: starting values come from [`Init`](crate::Init).

use half::bf16;

/// A `torch.Generator` on the CPU.
#[derive(Debug, Clone)]
pub struct TorchGenerator {
    state: Vec<u32>,
    next: usize,
}

const STATE: usize = 624;
const SHIFT: usize = 397;

/// Above this length torch permutes by another algorithm.
const LONG: u64 = (u32::MAX / 20) as u64;

impl TorchGenerator {
    /// `torch.Generator().manual_seed(seed)`. The state has 32 bits of seed; torch too drops the others.
    pub fn new(seed: i64) -> Self {
        let mut state = vec![seed as u32; STATE];
        for at in 1..STATE {
            let last = state[at - 1];
            state[at] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(at as u32);
        }
        Self { state, next: STATE }
    }

    /// 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == STATE {
            self.refill();
        }
        let mut bits = self.state[self.next];
        self.next += 1;
        bits ^= bits >> 11;
        bits ^= (bits << 7) & 0x9d2c_5680;
        bits ^= (bits << 15) & 0xefc6_0000;
        bits ^ (bits >> 18)
    }

    /// 64 random bits, the first half above.
    pub fn next_u64(&mut self) -> u64 {
        (u64::from(self.next_u32()) << 32) | u64::from(self.next_u32())
    }

    fn refill(&mut self) {
        for at in 0..STATE {
            let joined = (self.state[at] & 0x8000_0000) | (self.state[(at + 1) % STATE] & 0x7fff_ffff);
            let twist = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[at] = self.state[(at + SHIFT) % STATE] ^ (joined >> 1) ^ twist;
        }
        self.next = 0;
    }

    /// `torch.randperm(length)`.
    pub fn permutation(&mut self, length: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..length).collect();
        if (length as u64) < LONG {
            for at in 0..length.saturating_sub(1) {
                let other = at + (self.next_u32() as usize) % (length - at);
                order.swap(at, other);
            }
        } else {
            for at in 0..length {
                let other = (self.next_u64() % (at as u64 + 1)) as usize;
                order[at] = at;
                order.swap(at, other);
            }
        }
        order
    }

    /// `torch.empty(length).uniform_(low, high)`; `torch.rand` is `uniform(length, 0.0, 1.0)`.
    pub fn uniform(&mut self, length: usize, low: f32, high: f32) -> Vec<f32> {
        let width = high - low;
        let mut draw = || {
            let unit = (self.next_u32() & 0x00ff_ffff) as f32 * (1.0 / 16_777_216.0);
            unit.mul_add(width, low)
        };
        (0..length).map(|_| draw()).collect()
    }

    /// `torch.randn(length)`. The last bit may differ: torch has approximations of its own for logarithm and cosine.
    pub fn normal(&mut self, length: usize) -> Vec<f32> {
        let unit = |it: &mut Self| f64::from(it.uniform(1, 0.0, 1.0)[0]);
        self.normal_from(length, unit).into_iter().map(|it| it as f32).collect()
    }

    /// `torch.randn(length, dtype = float64)`, which are other numbers.
    pub fn normal_f64(&mut self, length: usize) -> Vec<f64> {
        self.normal_from(length, Self::unit)
    }

    /// Uniform in 0 ≤ x < 1, in double precision.
    fn unit(&mut self) -> f64 {
        (self.next_u64() & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    fn normal_from(&mut self, length: usize, uniform: impl Fn(&mut Self) -> f64) -> Vec<f64> {
        const BLOCK: usize = 16;
        let mut values: Vec<f64> = Vec::with_capacity(length + 1);
        if length < BLOCK {
            while values.len() < length {
                let (turn, height) = (self.unit(), self.unit());
                let (radius, angle) = ((-2.0 * (-height).ln_1p()).sqrt(), std::f64::consts::TAU * turn);
                values.extend([radius * angle.cos(), radius * angle.sin()]);
            }
            values.truncate(length);
            return values;
        }
        values.extend((0..length).map(|_| uniform(self)));
        let whole = length / BLOCK * BLOCK;
        values[..whole].chunks_mut(BLOCK).for_each(normal_block);
        if whole < length {
            // What is left over is drawn anew, together with its neighbours.
            let last = &mut values[length - BLOCK..];
            last.iter_mut().for_each(|it| *it = uniform(self));
            normal_block(last);
        }
        values
    }

    /// `torch.empty(length, dtype = bfloat16).uniform_(low, high)`. What rounds up to `high` is given as `low`.
    pub fn uniform_bf16(&mut self, length: usize, low: f32, high: f32) -> Vec<f32> {
        let rounded = |value: f32| bf16::from_f32(value).to_f32();
        let wrap = |value: f32| if value >= rounded(high) { rounded(low) } else { value };
        self.uniform(length, low, high).into_iter().map(|value| wrap(rounded(value))).collect()
    }
}

/// Sixteen uniform numbers to sixteen normal ones, by Box and Muller: the first half and the second make pairs.
fn normal_block(block: &mut [f64]) {
    let (first, second) = block.split_at_mut(8);
    for (a, b) in first.iter_mut().zip(second) {
        let (radius, angle) = ((-2.0 * (1.0 - *a).ln()).sqrt(), std::f64::consts::TAU * *b);
        (*a, *b) = (radius * angle.cos(), radius * angle.sin());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Drawn by torch 2.15.0: `torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:8]`, and `torch.rand`.

    #[test]
    fn permutations_are_those_of_torch() {
        for (seed, first) in [
            (0, [4, 16, 21, 5, 11, 14, 39, 29]),
            (777, [15, 9, 39, 27, 3, 22, 7, 29]),
            (-3, [11, 39, 21, 13, 35, 30, 12, 28]),
            ((1 << 32) + 5, [11, 16, 37, 25, 30, 20, 6, 33]),
        ] {
            assert_eq!(TorchGenerator::new(seed).permutation(40)[..8], first, "seed {seed}");
        }
        assert_eq!(TorchGenerator::new(7).permutation(1), [0]);
        assert!(TorchGenerator::new(7).permutation(0).is_empty());
    }

    #[test]
    fn the_state_is_refilled_as_in_torch() {
        let mut generator = TorchGenerator::new(7);
        let order = generator.permutation(5000);
        assert_eq!(order[..6], [1615, 4214, 1149, 2766, 855, 992]);
        assert_eq!(order[4994..], [2243, 1353, 3243, 4559, 302, 3157]);
        let after = [0.552_085_2, 0.830_409_3, 0.732_033_2];
        assert_eq!(generator.uniform(3, 0.0, 1.0), after);
    }

    #[test]
    fn uniform_numbers_are_those_of_torch() {
        let first = [0.081_915_32, 0.491_137_44, 0.403_293_3, 0.385_919_93, 0.881_322_3];
        assert_eq!(TorchGenerator::new(777).uniform(5, 0.0, 1.0), first);
        // torch.nn.init.kaiming_uniform_(torch.empty(3, 1, 5), a=√5): the bound is 1/√5.
        let bound = 1.0 / 5f32.sqrt();
        let first = [0.031_235_669, -0.269_398_63, 0.142_403_27, 0.140_326_92];
        assert_eq!(TorchGenerator::new(7).uniform(4, -bound, bound), first);
        let first = [0.031_25, -0.269_531_25, 0.142_578_13, 0.140_625];
        assert_eq!(TorchGenerator::new(7).uniform_bf16(4, -bound, bound), first);
    }

    #[test]
    fn normal_numbers_are_those_of_torch() {
        let close = |ours: Vec<f32>, wanted: &[f32]| {
            assert!(ours.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-5), "{ours:?}, not {wanted:?}");
        };
        // torch.randn(19), whose last sixteen are drawn anew, and torch.randn(5), which goes another way.
        let drawn = TorchGenerator::new(42).normal(19);
        close(drawn[..4].to_vec(), &[1.926_915_3, 1.487_284_1, 0.900_717_2, 0.439_589_26]);
        close(drawn[15..].to_vec(), &[0.859_858_5, -0.309_726_78, -0.395_710_5, 0.803_409_34]);
        let double = TorchGenerator::new(42).normal_f64(19);
        assert!(
            (double[0] - 0.299_556_287_750_263_7).abs() < 1e-12 && (double[3] - 0.618_669_993_885_617).abs() < 1e-12
        );
        let few = TorchGenerator::new(7).normal(5);
        close(few, &[-0.146_795_1, 0.786_141_3, 0.946_821_6, -1.114_344, 1.690_790_2]);
    }

    #[test]
    fn a_bf16_number_that_rounds_up_to_the_bound_wraps() {
        // Seed 11 and the bound 1/√37: the 2 in 1000 largest draws are −0.1640625 in torch.
        let bound = 1.0 / 37f32.sqrt();
        let drawn = TorchGenerator::new(11).uniform_bf16(100_000, -bound, bound);
        assert!(drawn.iter().all(|it| *it < 0.164_062_5));
        assert_eq!(drawn.iter().filter(|it| **it == -0.164_062_5).count(), 513);
    }

    /// Takes seconds and 1.7 GB; torch gives [50815193, 116864026, 18612126, 8421410] and, one below the limit,
    /// [3426993, 89012687, 34994685, 171579910].
    #[test]
    #[ignore = "large"]
    fn long_permutations_are_those_of_torch() {
        let at = |length| TorchGenerator::new(3).permutation(length)[..4].to_vec();
        assert_eq!(at(214_748_363), [3_426_993, 89_012_687, 34_994_685, 171_579_910]);
        assert_eq!(at(214_748_365), [50_815_193, 116_864_026, 18_612_126, 8_421_410]);
    }
}
