//! Chance from a seed: the same numbers on every machine.
//!
//! `SplitMix64` (Steele, Lea, Flood 2014), as in the brain; `libm` for logarithms, since those of
//! the platform differ in the last bit.

/// A stream of numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Between 0 and 1, neither possible.
    pub fn unit(&mut self) -> f64 {
        const STEP: f64 = 1.0 / (1_u64 << 53) as f64;
        ((self.bits() >> 11) as f64 + 0.5) * STEP
    }

    /// One of `0..count`; 0 if there is none.
    pub fn below(&mut self, count: u64) -> u64 {
        // Bias below 2^-32 for every count that occurs here.
        let wide = u128::from(self.bits()) * u128::from(count);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// Exponential, mean 1.
    pub fn exponential(&mut self) -> f64 {
        -libm::log(self.unit())
    }

    /// Normal, mean 0, deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = libm::sqrt(2.0 * self.exponential());
        radius * libm::cos(std::f64::consts::TAU * self.unit())
    }

    /// Gamma of this shape, mean 1 (Marsaglia and Tsang 2000). `shape` is above 0.
    pub fn gamma(&mut self, shape: f64) -> f64 {
        // Below 1 by one more draw: Gamma(k) = Gamma(k + 1) * U^(1/k).
        let boost = if shape < 1.0 {
            libm::pow(self.unit(), 1.0 / shape)
        } else {
            1.0
        };
        let d = (if shape < 1.0 { shape + 1.0 } else { shape }) - 1.0 / 3.0;
        let c = 1.0 / libm::sqrt(9.0 * d);
        // Accepted with more than 95 %: a thousand refusals do not happen.
        for _ in 0..1_000 {
            let x = self.normal();
            let v = libm::pow(1.0 + c * x, 3.0);
            if v > 0.0 && libm::log(self.unit()) < x * x / 2.0 + d - d * v + d * libm::log(v) {
                return boost * d * v / shape;
            }
        }
        1.0
    }
}
