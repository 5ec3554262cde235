//! What each primitive of `kernels/numbers.cuh` and `kernels/mma.cuh` must do, whatever executes it. The tables are
//! those of the PTX ISA, written down here once more, so that no mistake in the kernels' headers is repeated.

use attn_engine::gpu::driver::Driver;
use attn_engine::gpu::kernel::{Module, Source};
use half::{bf16, f16};

use super::primitives::{Buffer, launch};

// SAFETY: the functions below launch each entry with arrays of the sizes that it reads and writes; those that are
// wrong on purpose run on the emulator only, which refuses them.
pub const SOURCE: Source = unsafe {
    Source::new(
        "tensor_cores",
        include_str!("../kernels/tensor_cores.cu"),
        &[
            "widen_all",
            "narrow_all",
            "pack_all",
            "to_tf32_all",
            "f32_is_itself",
            "mma_16",
            "mma_tf32",
            "load_x4",
            "load_x4_transposed",
            "load_x2",
            "load_x2_transposed",
            "row_not_aligned",
            "row_not_shared",
            "different_products",
        ],
    )
};

/// The 16-bit types, and the way to them and back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Half {
    F16,
    Bf16,
}

impl Half {
    const ALL: [Half; 2] = [Half::F16, Half::Bf16];

    pub fn module(self) -> Module {
        Module::new(&SOURCE).define("STORAGE", if self == Half::F16 { "f16" } else { "bf16" })
    }

    fn narrow(self, x: f32) -> u16 {
        if self == Half::F16 { f16::from_f32(x).to_bits() } else { bf16::from_f32(x).to_bits() }
    }

    fn widen(self, bits: u16) -> f32 {
        if self == Half::F16 { f16::from_bits(bits).to_f32() } else { bf16::from_bits(bits).to_f32() }
    }
}

/// Every primitive on the architectures that have tensor cores for them (sm_80 and later). Panics where one is wrong.
pub fn all(driver: &dyn Driver) {
    for half in Half::ALL {
        conversions(driver, half);
        products_16(driver, half);
    }
    f32_and_tf32(driver);
    products_tf32(driver);
    products_of_noise(driver);
    loads(driver);
}

/// Bits without a pattern.
fn noise(count: usize, seed: u64) -> impl Iterator<Item = u32> {
    (0..count as u64).map(move |i| {
        let mut x = (i + (seed << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x >> 32) as u32
    })
}

// --- Numbers ------------------------------------------------------------------------------------

/// One number a thread, of `count` threads.
fn map<A: bytemuck::NoUninit, B: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
    driver: &dyn Driver,
    half: Half,
    entry: &str,
    input: &[A],
    count: usize,
) -> Vec<B> {
    let (input, out) = (Buffer::from(driver, input), Buffer::new(driver, count * size_of::<B>()));
    let arguments: [&[u8]; 3] = [&input.argument(), &out.argument(), &(count as i32).to_ne_bytes()];
    launch(driver, &half.module(), entry, (count.div_ceil(256) as u32, 256), &arguments).unwrap();
    out.read()
}

fn same(got: f32, wanted: f32) -> bool {
    got.to_bits() == wanted.to_bits() || (got.is_nan() && wanted.is_nan())
}

/// Where rounding changes: every number of the type, every middle between two of them and that middle's neighbours;
/// then bits without a pattern.
fn rounding_cases(half: Half) -> Vec<f32> {
    let mut cases = Vec::new();
    for bits in 0..=u16::MAX {
        let (x, next) = (half.widen(bits), half.widen(bits.wrapping_add(1)));
        cases.push(x);
        if x.is_finite() && next.is_finite() && bits != 0x7fff {
            let middle = ((f64::from(x) + f64::from(next)) / 2.0) as f32;
            cases.extend([middle, f32::from_bits(middle.to_bits() - 1), f32::from_bits(middle.to_bits() + 1)]);
        }
    }
    // From f16's largest, and bf16's, to infinity; and where both end in zero.
    for x in [65504.0, 65519.99, 65520.0, 65536.0, 1e9, f32::MAX, 2f32.powi(-24), 2f32.powi(-25), 2f32.powi(-26)] {
        cases.extend([x, -x, x.next_up(), x.next_down(), -x.next_up()]);
    }
    let bf16_limit = f32::from_bits(0x7f7f_8000);
    cases.extend([bf16_limit, bf16_limit.next_down(), -bf16_limit, f32::MIN_POSITIVE, f32::from_bits(1)]);
    cases.extend([f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001)]);
    cases.extend(noise(100_000, 1).map(f32::from_bits));
    cases
}

fn conversions(driver: &dyn Driver, half: Half) {
    let every: Vec<u16> = (0..=u16::MAX).collect();
    let wide: Vec<f32> = map(driver, half, "widen_all", &every, every.len());
    for (&bits, got) in every.iter().zip(wide) {
        assert!(same(got, half.widen(bits)), "widen {half:?} {bits:#06x}: {got}");
    }
    let mut cases = rounding_cases(half);
    cases.truncate(cases.len() / 2 * 2);
    let check = |how: &str, x: f32, got: u16| {
        let wanted = half.narrow(x);
        let nan = half.widen(got).is_nan() && x.is_nan();
        assert!(got == wanted || nan, "{how} {half:?}: {x:e} ({:#x}) to {got:#06x}, not {wanted:#06x}", x.to_bits());
    };
    let narrow: Vec<u16> = map(driver, half, "narrow_all", &cases, cases.len());
    for (&x, got) in cases.iter().zip(narrow) {
        check("narrow", x, got);
    }
    let pairs: Vec<u32> = map(driver, half, "pack_all", &cases, cases.len() / 2);
    for (x, got) in cases.chunks(2).zip(pairs) {
        check("pack, low", x[0], got as u16);
        check("pack, high", x[1], (got >> 16) as u16);
    }
}

/// To the nearest number with 10 bits of mantissa, of two the one away from zero.
fn tf32(x: f32) -> f32 {
    if !x.is_finite() {
        return x;
    }
    let exponent = ((x.to_bits() >> 23 & 0xff) as i32).max(1) - 127;
    let last_place = 2f64.powi(exponent - 10);
    ((f64::from(x.abs()) / last_place + 0.5).floor() * last_place).copysign(f64::from(x)) as f32
}

fn f32_and_tf32(driver: &dyn Driver) {
    assert_eq!([1.0 + 2f32.powi(-11), 1.0 + 2f32.powi(-12)].map(tf32), [1.0 + 2f32.powi(-10), 1.0]);
    let mut cases: Vec<u32> = noise(200_000, 2).collect();
    for upper in noise(2000, 3) {
        cases.extend([0, 0xfff, 0x1000, 0x1001, 0x1fff].map(|low| upper & !0x1fff | low));
    }
    cases.extend([0, 1 << 31, 1, 0xfff, 0x1000, 0x7f7f_efff, 0x7f7f_f000, 0x7f7f_ffff, 0xff7f_f000]);
    cases.extend([0x7f80_0000, 0xff80_0000, 0x7fff_ffff, 0xffff_ffff, 0x7f80_0001]);
    let got: Vec<u32> = map(driver, Half::F16, "to_tf32_all", &cases, cases.len());
    for (&bits, got) in cases.iter().zip(got) {
        // The lower 13 bits are not TF32's.
        let (x, got) = (f32::from_bits(bits), f32::from_bits(got & !0x1fff));
        assert!(same(got, tf32(x)), "to_tf32: {x:e} ({bits:#x}) to {got:e}, not {:e}", tf32(x));
    }
    let same: Vec<u32> = map(driver, Half::F16, "f32_is_itself", &cases, cases.len());
    assert!(cases == same, "narrow<f32>(widen(x)) is x");
}

// --- Products -----------------------------------------------------------------------------------

/// Where element i of a lane's fragment stands: (row, column).
type Place = fn(lane: usize, i: usize) -> (usize, usize);

/// The elements of a fragment, of all lanes: a matrix's places.
struct Fragment {
    elements: usize,
    place: Place,
}

// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type". groupID = lane / 4, threadID_in_group = lane % 4.
const A_16: Fragment = Fragment {
    elements: 8,
    place: |lane, i| {
        let row = if i < 2 || (4..6).contains(&i) { lane / 4 } else { lane / 4 + 8 };
        (row, lane % 4 * 2 + i % 2 + if i < 4 { 0 } else { 8 })
    },
};
const B_16: Fragment =
    Fragment { elements: 4, place: |lane, i| (lane % 4 * 2 + i % 2 + if i < 2 { 0 } else { 8 }, lane / 4) };
// The same for m16n8k8.
const C: Fragment =
    Fragment { elements: 4, place: |lane, i| (if i < 2 { lane / 4 } else { lane / 4 + 8 }, lane % 4 * 2 + i % 2) };
// PTX ISA, "Matrix fragments for mma.m16n8k8", .tf32.
const A_TF32: Fragment = Fragment {
    elements: 4,
    place: |lane, i| {
        let row = if i == 0 || i == 2 { lane / 4 } else { lane / 4 + 8 };
        (row, if i < 2 { lane % 4 } else { lane % 4 + 4 })
    },
};
const B_TF32: Fragment =
    Fragment { elements: 2, place: |lane, i| (if i == 0 { lane % 4 } else { lane % 4 + 4 }, lane / 4) };

impl Fragment {
    /// `value` of each element's place, lane by lane.
    fn fill<T>(&self, value: impl Fn(usize, usize) -> T) -> Vec<T> {
        let element = |e: usize| (self.place)(e / self.elements, e % self.elements);
        (0..32 * self.elements).map(element).map(|(row, column)| value(row, column)).collect()
    }
}

/// Two 16-bit numbers to a register, the first in its lower half.
fn registers(numbers: &[u16]) -> Vec<u32> {
    numbers.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16).collect()
}

/// D += A·B for each warp's registers; `d` is 128 numbers a warp.
fn multiply(driver: &dyn Driver, module: &Module, entry: &str, a: &[u32], b: &[u32], d: &[f32]) -> Vec<f32> {
    let (a, b, sum) = (Buffer::from(driver, a), Buffer::from(driver, b), Buffer::from(driver, d));
    let arguments = [a.argument(), b.argument(), sum.argument()];
    launch(driver, module, entry, ((d.len() / 128) as u32, 32), &arguments.each_ref().map(|a| &a[..])).unwrap();
    sum.read()
}

/// One element of A (then of B) is 2, the others 0; the other matrix and D hold a different number at each place. All
/// of it is exact in every type.
fn one_hot(
    driver: &dyn Driver,
    module: &Module,
    entry: &str,
    (a, b, inner): (&Fragment, &Fragment, usize),
    bits: &dyn Fn(&[f32]) -> Vec<u32>,
) {
    let full_a = |row: usize, k: usize| (row * inner + k + 1) as f32;
    let full_b = |k: usize, column: usize| (k * 8 + column + 1) as f32;
    let start = |row: usize, column: usize| (1000 + row * 8 + column) as f32;
    for (name, hot_one) in [("A", a), ("B", b)] {
        let cases = 32 * hot_one.elements;
        let (mut all_a, mut all_b, mut all_d) = (Vec::new(), Vec::new(), Vec::new());
        for case in 0..cases {
            let hot: Vec<f32> = (0..cases).map(|e| if e == case { 2.0 } else { 0.0 }).collect();
            all_a.extend(bits(&if name == "A" { hot.clone() } else { a.fill(full_a) }));
            all_b.extend(bits(&if name == "B" { hot } else { b.fill(full_b) }));
            all_d.extend(C.fill(start));
        }
        let got = multiply(driver, module, entry, &all_a, &all_b, &all_d);
        for (case, got) in got.chunks(128).enumerate() {
            let (hot_row, hot_column) = (hot_one.place)(case / hot_one.elements, case % hot_one.elements);
            let wanted = C.fill(|row, column| {
                let product = match name {
                    "A" if row == hot_row => 2.0 * full_b(hot_column, column),
                    "B" if column == hot_column => 2.0 * full_a(row, hot_row),
                    _ => 0.0,
                };
                start(row, column) + product
            });
            let (lane, i) = (case / hot_one.elements, case % hot_one.elements);
            assert_eq!(got, wanted, "{entry} ({module}): element {i} of lane {lane} in {name}");
        }
    }
    // D alone: each element stays where it is.
    let cases: Vec<f32> = (0..128 * 128).map(|i| if i / 128 == i % 128 { 3.0 } else { 0.0 }).collect();
    let (zero_a, zero_b) = (vec![0u32; 128 * 128], vec![0u32; 128 * 64]);
    assert_eq!(multiply(driver, module, entry, &zero_a, &zero_b, &cases), cases, "{entry} ({module}): D");
}

fn products_16(driver: &dyn Driver, half: Half) {
    let bits = |x: &[f32]| registers(&x.iter().map(|&x| half.narrow(x)).collect::<Vec<_>>());
    one_hot(driver, &half.module(), "mma_16", (&A_16, &B_16, 16), &bits);
}

fn products_tf32(driver: &dyn Driver) {
    let module = Half::F16.module();
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect();
    one_hot(driver, &module, "mma_tf32", (&A_TF32, &B_TF32, 8), &bits);
    // The lower 13 bits of a number do not count.
    let one = 1f32.to_bits();
    for (a, b) in [(one | 0x1fff, one), (one, one | 0x1fff)] {
        let got = multiply(driver, &module, "mma_tf32", &[a; 128], &[b; 64], &[0.0; 128]);
        assert_eq!(got, [8.0; 128], "mma_tf32: {a:#x} times {b:#x}");
    }
}

/// One product added to D in the order of k, in f32, as the emulator promises it; and the sum of the magnitudes.
fn in_order((a, b, d): (&[f32], &[f32], &[f32]), (of_a, of_b, inner): (Fragment, Fragment, usize)) -> [Vec<f32>; 2] {
    let at = |fragment: &Fragment, numbers: &[f32], row: usize, column: usize| {
        let element = |e: &usize| (fragment.place)(e / fragment.elements, e % fragment.elements) == (row, column);
        numbers[(0..numbers.len()).find(element).unwrap()]
    };
    let terms = |row: usize, column: usize| -> Vec<f32> {
        let product = |k| at(&of_a, a, row, k) * at(&of_b, b, k, column);
        std::iter::once(at(&C, d, row, column)).chain((0..inner).map(product)).collect()
    };
    let sum = |row, column| terms(row, column).into_iter().reduce(|sum, x| sum + x).unwrap();
    let magnitude = |row, column| terms(row, column).into_iter().map(f32::abs).sum();
    [C.fill(sum), C.fill(magnitude)]
}

/// A product of numbers without a pattern, of the named type.
pub struct Noisy {
    pub name: &'static str,
    pub got: Vec<f32>,
    /// What the emulator must give, to the last bit.
    pub in_order: Vec<f32>,
    /// The sum of the terms' magnitudes.
    magnitudes: Vec<f32>,
}

/// Products whose sums nearly all round.
pub fn noisy_products(driver: &dyn Driver) -> Vec<Noisy> {
    // Between 1/8 and 2, of either sign, with full mantissas.
    let number = |bits: u32| f32::from_bits((bits & 0x807f_ffff) | ((124 + (bits >> 24) % 4) << 23));
    let numbers = |count: usize, seed: u64| noise(count, seed).map(number).collect::<Vec<f32>>();
    let d = numbers(128, 7);
    let mut results = Vec::new();
    for (half, name) in Half::ALL.into_iter().zip(["f16", "bf16"]) {
        let narrow = |list: Vec<f32>| list.into_iter().map(|x| half.narrow(x)).collect::<Vec<_>>();
        let widen = |list: &[u16]| list.iter().map(|&bits| half.widen(bits)).collect::<Vec<_>>();
        let (a, b) = (narrow(numbers(256, 8)), narrow(numbers(128, 9)));
        let [in_order, magnitudes] = in_order((&widen(&a), &widen(&b), &d), (A_16, B_16, 16));
        let got = multiply(driver, &half.module(), "mma_16", &registers(&a), &registers(&b), &d);
        results.push(Noisy { name, got, in_order, magnitudes });
    }
    let [a, b] = [(128, 10), (64, 11)]
        .map(|(count, seed)| -> Vec<u32> { numbers(count, seed).into_iter().map(|x| x.to_bits() & !0x1fff).collect() });
    let floats = |list: &[u32]| list.iter().copied().map(f32::from_bits).collect::<Vec<_>>();
    let [in_order, magnitudes] = in_order((&floats(&a), &floats(&b), &d), (A_TF32, B_TF32, 8));
    let got = multiply(driver, &Half::F16.module(), "mma_tf32", &a, &b, &d);
    results.push(Noisy { name: "tf32", got, in_order, magnitudes });
    results
}

/// How hardware rounds the sum of up to 17 terms is not specified; here each may lose two of f32's last bits.
fn products_of_noise(driver: &dyn Driver) {
    for Noisy { name, got, in_order, magnitudes } in noisy_products(driver) {
        for ((got, wanted), magnitude) in got.into_iter().zip(in_order).zip(magnitudes) {
            let bound = 17.0 * 2f32.powi(-22) * magnitude;
            assert!((got - wanted).abs() <= bound, "{name}: {got}, not {wanted} within {bound:e}");
        }
    }
}

// --- Loads --------------------------------------------------------------------------------------

/// PTX ISA, ldmatrix: lanes 8i … 8i+7 give the addresses of the rows of matrix i. Register i of a lane holds of matrix
/// i row lane / 4, elements 2·(lane % 4) and the next; with .trans those of column lane / 4.
fn loads(driver: &dyn Driver) {
    // One-hot for each of the 32 rows' 8 elements; then all different.
    let mut images: Vec<Vec<u16>> =
        (0..256).map(|hot| (0..256).map(|e| u16::from(e == hot) * 0x8001).collect()).collect();
    images.push((0..256).map(|e| 0x0101 + e * 0xfe).collect());
    let input = Buffer::from(driver, &images.iter().flat_map(|image| registers(image)).collect::<Vec<_>>());
    let forms = [
        ("load_x4", 4, false),
        ("load_x4_transposed", 4, true),
        ("load_x2", 2, false),
        ("load_x2_transposed", 2, true),
    ];
    for (entry, matrices, transposed) in forms {
        for step in [1, 13] {
            let order: Vec<i32> = (0..32).map(|lane| (lane * step + step - 1) % 32).collect();
            let (rows, out) = (Buffer::from(driver, &order), Buffer::new(driver, images.len() * 32 * matrices * 4));
            let arguments = [input.argument(), rows.argument(), out.argument()];
            let shape = (images.len() as u32, 32);
            launch(driver, &Half::F16.module(), entry, shape, &arguments.each_ref().map(|a| &a[..])).unwrap();
            for (n, (got, image)) in out.read::<u32>().chunks(32 * matrices).zip(&images).enumerate() {
                for (e, &got) in got.iter().enumerate() {
                    let (lane, i) = (e / matrices, e % matrices);
                    let element = |row: usize, column: usize| image[order[8 * i + row] as usize * 8 + column];
                    let (group, pair) = (lane / 4, lane % 4 * 2);
                    let wanted = if transposed {
                        [element(pair, group), element(pair + 1, group)]
                    } else {
                        [element(group, pair), element(group, pair + 1)]
                    };
                    assert_eq!(
                        [got as u16, (got >> 16) as u16],
                        wanted,
                        "{entry}: image {n}, register {i} of lane {lane}"
                    );
                }
            }
        }
    }
}
