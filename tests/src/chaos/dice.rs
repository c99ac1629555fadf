//! SplitMix64, written out here because a trial must stay the same when a dependency changes its mind
//! about random numbers.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// See the module.
pub struct Dice(u64);

impl Dice {
    /// Numbers of their own for each stream of a seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut dice = Self(seed.wrapping_add(stream.wrapping_mul(0xd134_2543_de82_ef95)));
        dice.next();
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is small: the bias of the remainder does not matter.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// Between two numbers, as often between 1 and 10 as between 10 and 100.
    pub fn span(&mut self, least: u64, most: u64) -> u64 {
        let part = self.below(1 << 20) as f64 / f64::from(1 << 20);
        let ratio = most as f64 / least.max(1) as f64;
        let value = least as f64 * ratio.powf(part);
        (value.round() as u64).clamp(least, most)
    }

    /// One of these, if there is any.
    pub fn choose<T: Copy>(&mut self, among: &[T]) -> Option<T> {
        among.get(self.below(among.len() as u64) as usize).copied()
    }
}
