//! Every operation of every instruction set against plain Rust, on awkward values.

use super::*;
use crate::hardware::isas;

/// Runs all operations, and gives for each its name and the bits of its results.
struct Everything;

type Results = Vec<(&'static str, Vec<u32>)>;

impl Kernel for Everything {
    type Output = Results;

    unsafe fn run<I: Isa>(self) -> Results {
        let mut results = Vec::new();
        floats::<I>(&mut results);
        halves::<I>(&mut results);
        small::<I>(&mut results);
        integers::<I>(&mut results);
        bytes::<I>(&mut results);
        products::<I>(&mut results);
        results
    }
}

/// The same numbers every time, of no pattern.
fn noise(count: usize, seed: u32) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state ^ state >> 15
    };
    (0..count).map(|_| next()).collect()
}

/// Finite numbers: zeros, subnormal ones and the largest among them.
fn finite(seed: u32) -> Vec<f32> {
    let edges = [0.0, -0.0, 1e-45, -1e-39, f32::MIN_POSITIVE, f32::MAX, 0.1];
    let bits = noise(16 * LANES - edges.len(), seed);
    let random = bits.into_iter().map(f32::from_bits);
    let sound = random.map(|value| if value.is_finite() { value } else { 1.5 });
    edges.into_iter().chain(sound).collect()
}

unsafe fn float_bits<I: Isa>(value: I::F) -> [u32; LANES] {
    let mut lanes = [0.0; LANES];
    I::store(lanes.as_mut_ptr(), value);
    lanes.map(f32::to_bits)
}

/// Through halves, since only small integers are exact as `f32`.
unsafe fn int_bits<I: Isa>(value: I::I) -> [u32; LANES] {
    let high = float_bits::<I>(I::from_int(high16::<I>(value)));
    let low = float_bits::<I>(I::from_int(low16::<I>(value)));
    std::array::from_fn(|lane| {
        let half = |bits: u32| f32::from_bits(bits) as i32 as u32 & 0xffff;
        half(high[lane]) << 16 | half(low[lane])
    })
}

/// The lower `i16` of every pair.
unsafe fn low16<I: Isa>(pairs: I::I) -> I::I {
    I::madd16(pairs, I::splat_i(1))
}

/// The upper `i16` of every pair.
unsafe fn high16<I: Isa>(pairs: I::I) -> I::I {
    I::madd16(pairs, I::splat_i(1 << 16))
}

/// The other way round.
unsafe fn ints<I: Isa>(values: &[u32]) -> I::I {
    let half = |shift: u32| {
        let halves: Vec<f32> = values
            .iter()
            .map(|v| (v >> shift & 0xffff) as f32)
            .collect();
        I::to_int(I::load(halves.as_ptr()))
    };
    I::add_i(I::mul_i(half(16), I::splat_i(1 << 16)), half(0))
}

unsafe fn floats<I: Isa>(results: &mut Results) {
    let (a, b, c) = (finite(1), finite(2), finite(3));
    for at in (0..a.len()).step_by(LANES) {
        let [a, b, c] = [&a, &b, &c].map(|values| I::load(values[at..].as_ptr()));
        for (name, value) in [
            ("splat", I::splat(-0.0)),
            ("add", I::add(a, b)),
            ("sub", I::sub(a, c)),
            ("mul", I::mul(a, b)),
            ("div", I::div(c, I::splat(3.0))),
            ("fma", I::fma(a, b, c)),
            (
                "fma that cancels",
                I::fma(a, I::splat(1.1), I::mul(a, I::splat(-1.1))),
            ),
        ] {
            results.push((name, float_bits::<I>(value).to_vec()));
        }
        results.push((
            "magnitude_bits",
            int_bits::<I>(I::magnitude_bits(a)).to_vec(),
        ));
        let tame = I::max(I::min(a, I::splat(100.0)), I::splat(-100.0));
        results.push(("sum", vec![I::sum(tame).to_bits()]));
        results.push(("highest", vec![I::highest(tame).to_bits()]));
    }
    compare::<I>(results);
    convert::<I>(results);
}

unsafe fn compare<I: Isa>(results: &mut Results) {
    let odd = [
        0.0,
        -0.0,
        1.0,
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        -1e-45,
    ];
    for value in odd {
        for other in odd {
            let (a, b) = (I::splat(value), I::splat(other));
            results.push(("max", float_bits::<I>(I::max(a, b)).to_vec()));
            results.push(("min", float_bits::<I>(I::min(a, b)).to_vec()));
        }
        let bits = int_bits::<I>(I::magnitude_bits(I::splat(value)));
        results.push(("magnitude_bits of odd ones", bits.to_vec()));
    }
}

unsafe fn convert<I: Isa>(results: &mut Results) {
    for start in (-640..640).step_by(LANES) {
        let quarters: Vec<f32> = (start..).take(LANES).map(|i| i as f32 * 0.25).collect();
        let rounded = I::to_int(I::load(quarters.as_ptr()));
        results.push(("to_int", int_bits::<I>(rounded).to_vec()));
    }
    for exponent in -126..=127 {
        let exponent = I::splat_i(exponent);
        let scaled = I::scale_by_power_of_two(I::load(finite(4).as_ptr()), exponent);
        results.push(("scale_by_power_of_two", float_bits::<I>(scaled).to_vec()));
    }
    let large = ints::<I>(&noise(LANES, 5));
    results.push(("from_int", float_bits::<I>(I::from_int(large)).to_vec()));
}

unsafe fn halves<I: Isa>(results: &mut Results) {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    for bits in all.chunks(LANES) {
        let wide = I::load_f16(bits.as_ptr());
        results.push(("load_f16", float_bits::<I>(wide).to_vec()));
        // Only plain Rust makes those that are not numbers quiet.
        let quiet = |bits: &u16| bits | u16::from(half::bf16::from_bits(*bits).is_nan()) << 6;
        let quietened: Vec<u16> = bits.iter().map(quiet).collect();
        let wide = I::load_bf16(quietened.as_ptr());
        results.push(("load_bf16", float_bits::<I>(wide).to_vec()));
        // All exponents, signs and ties: what an f16 drops are the last 13 bits.
        for low in [0, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0xffff] {
            let values: Vec<f32> = bits
                .iter()
                .map(|high| f32::from_bits(u32::from(*high) << 16 | low))
                .collect();
            let mut rounded = [0u16; LANES];
            I::store_f16(rounded.as_mut_ptr(), I::load(values.as_ptr()));
            results.push(("store_f16", rounded.map(u32::from).to_vec()));
        }
    }
}

unsafe fn small<I: Isa>(results: &mut Results) {
    let all: Vec<i8> = (i8::MIN..=i8::MAX).collect();
    // Of no alignment in particular.
    for start in [0, 1, 7, 112, 240] {
        let wide = I::load_i8(all[start..start + LANES].as_ptr());
        results.push(("load_i8", float_bits::<I>(wide).to_vec()));
    }
    for bytes in all.chunks(LANES) {
        let wide = I::load_i8(bytes.as_ptr());
        results.push(("load_i8", float_bits::<I>(wide).to_vec()));
    }
}

unsafe fn integers<I: Isa>(results: &mut Results) {
    let mut values = noise(32 * LANES, 6);
    values[0] = 0x8000_8000;
    values[1] = 0x7fff_8000;
    for pair in values.chunks(2 * LANES) {
        let (a, b) = (ints::<I>(&pair[..LANES]), ints::<I>(&pair[LANES..]));
        let small = high16::<I>(I::shr16_by_four(I::shr16_by_four(a)));
        for (name, value) in [
            ("add_i", I::add_i(a, b)),
            ("sub_i", I::sub_i(a, b)),
            ("max_i", I::max_i(a, b)),
            ("mul_i", I::mul_i(a, b)),
            ("and16", I::and16(a, 0x5ff5)),
            ("shr16_by_four", I::shr16_by_four(a)),
            ("low_twice", I::low_twice(a)),
            ("high_twice", I::high_twice(a)),
            ("madd16", I::madd16(a, b)),
            ("madd16 of equals", I::madd16(a, a)),
            ("load_u8_pairs", I::load_u8_pairs(pair.as_ptr().cast())),
            ("load_i8_pairs", I::load_i8_pairs(pair.as_ptr().cast())),
        ] {
            results.push((name, int_bits::<I>(value).to_vec()));
        }
        let mut stored = [0; LANES];
        I::store_i(stored.as_mut_ptr(), a);
        let loaded = int_bits::<I>(I::load_i(stored.as_ptr()));
        results.push(("load_i, store_i", loaded.to_vec()));
        results.push(("highest_i", vec![I::highest_i(a) as u32]));
        results.push(("sum_i", vec![I::sum_i(a) as u32]));
        let (first, second) = I::sums_of_pairs(a);
        results.push(("sums_of_pairs", vec![first as u32, second as u32]));
        let mut stored = [0i8; LANES];
        let signed = I::sub_i(small, I::splat_i(128));
        I::store_i8(stored.as_mut_ptr(), signed);
        results.push(("store_i8", stored.map(|byte| byte as u32).to_vec()));
    }
}

unsafe fn byte_bits<I: Isa>(value: I::B) -> Vec<u32> {
    let mut bytes = [0u8; 4 * LANES];
    I::store_b(bytes.as_mut_ptr(), value);
    bytes.map(u32::from).to_vec()
}

unsafe fn bytes<I: Isa>(results: &mut Results) {
    let (a, b) = (noise(LANES, 7), noise(LANES, 8));
    let (a, b) = (I::load_b(a.as_ptr().cast()), I::load_b(b.as_ptr().cast()));
    for (name, value) in [
        ("load_b", a),
        ("and_b", I::and_b(a, 0xa5)),
        ("or_b", I::or_b(a, b)),
        ("xor_b", I::xor_b(a, 0xa5)),
        ("shr_b", I::and_b(I::shr_b::<1>(a), 0x7f)),
        ("shr_b", I::and_b(I::shr_b::<4>(a), 0x0f)),
        ("shr_b", I::and_b(I::shr_b::<6>(a), 0x03)),
        ("shl_b", I::and_b(I::shl_b::<1>(a), 0xfe)),
        ("shl_b", I::and_b(I::shl_b::<4>(a), 0xf0)),
    ] {
        results.push((name, byte_bits::<I>(value)));
    }
}

/// Four bytes that are not -128, and their sum.
fn activations(bits: u32) -> (i32, i32) {
    let bytes = bits.to_ne_bytes().map(|byte| (byte as i8).max(-127));
    let sum = bytes.iter().map(|byte| i32::from(*byte)).sum();
    (i32::from_ne_bytes(bytes.map(|byte| byte as u8)), sum)
}

/// A signed byte in both halves.
fn small_twice(bits: &u32) -> u32 {
    let small = *bits as i8 as i16 as u16;
    u32::from(small) << 16 | u32::from(small)
}

/// Products with weights of which each counts half its range too much.
unsafe fn products_around_zero<I: Isa>(weights: I::B, bits: u32, groups: &[u32]) -> I::I {
    let offset = 1 << (bits - 1);
    let mut sum = I::splat_i(0);
    // What a sum begins with must fit into sixteen bits.
    let most = if bits > 5 { 4 } else { 8 };
    for part in groups.chunks(I::groups_around_zero(bits).min(most)) {
        let (mut low, mut high) = (0, 0);
        for case in part {
            let four = activations(*case)
                .0
                .to_ne_bytes()
                .map(|byte| i32::from(byte as i8));
            low -= offset * (four[0] + four[1]);
            high -= offset * (four[2] + four[3]);
        }
        let add = |acc, case: &u32| I::acc(acc, weights, activations(*case).0);
        let begin = I::acc_begin(low & 0xffff | high << 16);
        sum = I::add_i(sum, I::acc_finish(part.iter().fold(begin, add)));
    }
    sum
}

unsafe fn products<I: Isa>(results: &mut Results) {
    let extremes = [0x7f7f_7f7f, 0x8181_8181, 0x7f81_7f81];
    let mut cases = noise(64, 9);
    // Eight of each, so that the sums grow as large as they can.
    cases.extend(extremes.iter().flat_map(|bits| [*bits; 8]));
    for bits in 1..=6 {
        for mask in [(1u8 << bits) - 1, 1] {
            for (round, groups) in cases.chunks(8).enumerate() {
                // The first rounds with any weights, the last with the largest.
                let weights = if round < 4 {
                    noise(LANES, 10)
                } else {
                    vec![!0; LANES]
                };
                let weights = I::and_b(I::load_b(weights.as_ptr().cast()), mask);
                let (mut sum, mut scaled) = (I::splat_i(0), I::splat_i(0));
                let scales =
                    ints::<I>(&noise(LANES, 12).iter().map(small_twice).collect::<Vec<_>>());
                for part in groups.chunks(I::groups(bits)) {
                    let add = |acc, case: &u32| I::acc(acc, weights, activations(*case).0);
                    let mut acc = [part.iter().fold(I::acc_zero(), add)];
                    I::pin(&mut acc);
                    sum = I::add_i(sum, I::acc_finish(acc[0]));
                    scaled = I::add_i(scaled, I::acc_scaled(acc[0], scales));
                }
                results.push(("acc", int_bits::<I>(sum).to_vec()));
                results.push(("acc_scaled", int_bits::<I>(scaled).to_vec()));
                let around_zero = products_around_zero::<I>(weights, bits, groups);
                results.push(("acc_begin", int_bits::<I>(around_zero).to_vec()));
            }
        }
    }
    for weights in [
        noise(LANES, 11),
        vec![0x8080_8080; LANES],
        vec![0x7f80_7f80; LANES],
    ] {
        let weights = I::load_b(weights.as_ptr().cast());
        let (mut sum, mut offset) = (I::splat_i(0), 0);
        for case in &cases {
            let (four, own) = activations(*case);
            sum = I::acc_signed(sum, weights, four);
            offset += own * I::SIGNED_OFFSET;
        }
        sum = I::sub_i(sum, I::splat_i(offset));
        results.push(("acc_signed", int_bits::<I>(sum).to_vec()));
    }
}

fn assert_equal(results: &Results, expected: &Results, isa: &str) {
    assert_eq!(results.len(), expected.len());
    for (case, (got, expected)) in results.iter().zip(expected).enumerate() {
        assert_eq!(got, expected, "case {case} on {isa}");
    }
}

#[test]
fn every_operation_gives_the_same_bits_on_every_instruction_set() {
    let expected = dispatch(IsaName::Scalar, Everything);
    for &isa in isas() {
        assert_equal(&dispatch(isa, Everything), &expected, isa.name());
    }
}

/// A processor with dot products would never run it otherwise.
#[cfg(target_arch = "aarch64")]
#[test]
fn neon_without_dot_products_gives_the_same_bits() {
    let expected = dispatch(IsaName::Scalar, Everything);
    // SAFETY: the processor was asked.
    if isas().contains(&IsaName::Neon) {
        let results = unsafe { neon::run_widening(Everything) };
        assert_equal(&results, &expected, "neon without dotprod");
    }
}
