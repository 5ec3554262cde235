//! Philox4x32-10: counter-based random numbers (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy
//! as 1, 2, 3", SC 2011). The same element gets the same number on every device, whatever the tiles and threads.

/// A stream of random words, indexed by element.
#[derive(Debug, Clone, Copy)]
pub struct Philox {
    seed: u64,
    stream: u32,
    step: u32,
}

/// Ten rounds on a counter under a key.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = 0xD2511F53u64 * counter[0] as u64;
        let p1 = 0xCD9E8D57u64 * counter[2] as u64;
        counter =
            [(p1 >> 32) as u32 ^ counter[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ counter[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(0x9E3779B9), key[1].wrapping_add(0xBB67AE85)];
    }
    counter
}

impl Philox {
    /// Key = seed; counter = (element / 4 low, high, stream, step).
    pub fn new(seed: u64, stream: u32, step: u32) -> Self {
        Philox { seed, stream, step }
    }

    /// The words of elements 4·block to 4·block + 3.
    pub fn block(&self, block: u64) -> [u32; 4] {
        let counter = [block as u32, (block >> 32) as u32, self.stream, self.step];
        philox4x32_10(counter, [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// An element's word.
    pub fn word(&self, element: u64) -> u32 {
        self.block(element / 4)[(element % 4) as usize]
    }

    /// Uniform in [0, 1) with 24 bits, as the kernels draw it.
    pub fn uniform(&self, element: u64) -> f32 {
        Self::to_uniform(self.word(element))
    }

    /// A word as a number in [0, 1) with 24 bits.
    pub fn to_uniform(word: u32) -> f32 {
        (word >> 8) as f32 * (1.0 / 16777216.0)
    }

    /// Standard normal, by Box and Muller from two words of a block of its own.
    pub fn normal(&self, element: u64) -> f64 {
        let [a, b, ..] = self.block(element);
        let u = (a as f64 + 0.5) / 4294967296.0;
        let angle = std::f64::consts::TAU * (b as f64 / 4294967296.0);
        (-2.0 * u.ln()).sqrt() * angle.cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that Random123 publishes (kat_vectors).
    #[test]
    fn agrees_with_random123() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox4x32_10([!0; 4], [!0; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let counter = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
        let expected = [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1];
        assert_eq!(philox4x32_10(counter, [0xa4093822, 0x299f31d0]), expected);
    }
}
