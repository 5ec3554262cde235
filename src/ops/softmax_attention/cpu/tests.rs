use super::*;
use crate::cpu::lanes::{FORCED, Level};
use crate::cpu::strided::{contiguous_strides, span};

/// Sizes, mask and layout of one comparison.
#[derive(Debug, Clone)]
struct Case {
    sizes: Sizes,
    lengths: Option<Vec<i32>>,
    /// Whether q, k and v lie side by side in one buffer (B,T,columns).
    packed: bool,
}

fn case(bhgts: [usize; 5], dims: [usize; 2], causal: bool, lengths: Option<&[i32]>) -> Case {
    let [batch, heads, kv_heads, queries, keys] = bhgts;
    let sizes = Sizes { batch, heads, kv_heads, queries, keys, key_dim: dims[0], value_dim: dims[1], causal };
    Case { sizes, lengths: lengths.map(<[i32]>::to_vec), packed: false }
}

/// Uniform in −1…1, the same on every run.
fn random(n: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..n).map(step).collect()
}

/// A (B,H,T,D) tensor in memory of its own.
#[derive(Clone)]
struct Owned<R> {
    data: Vec<R>,
    shape: [usize; 4],
    strides: Vec<usize>,
}

impl<R: Real> Owned<R> {
    fn random(shape: [usize; 4], packed: bool, seed: u64) -> Self {
        let [_, h, t, d] = shape;
        // As columns of a packed projection with 5 columns of others.
        let row = h * d + 5;
        let strides = if packed { vec![t * row, d, row, 1] } else { contiguous_strides(&shape) };
        let data = random(span(&shape, &strides), seed).into_iter().map(R::from_f64).collect();
        Owned { data, shape, strides }
    }
    fn filled(&self, value: f64) -> Self {
        Owned { data: vec![R::from_f64(value); self.data.len()], ..self.clone() }
    }
    fn as_ref(&self) -> Ref<'_, R> {
        Ref { data: &self.data, shape: &self.shape, strides: &self.strides }
    }
    fn as_mut(&mut self) -> Mut<'_, R> {
        Mut::new(&mut self.data, &self.shape, &self.strides)
    }
    /// In row-major order.
    fn values(&self) -> Vec<f64> {
        let [b, h, t, _] = self.shape;
        let rows = (0..b * h * t).map(|i| [i / (h * t), i / t % h, i % t]);
        rows.flat_map(|i| self.as_ref().row(&i).iter().map(|x| x.to_f64()).collect::<Vec<_>>()).collect()
    }
}

struct Data<R> {
    q: Owned<R>,
    k: Owned<R>,
    v: Owned<R>,
    d_out: Owned<R>,
    d_lse: Vec<R>,
}

fn data<R: Real>(c: &Case) -> Data<R> {
    let s = c.sizes;
    let (kv, t) = ([s.batch, s.kv_heads, s.keys], [s.batch, s.heads, s.queries]);
    let with = |a: [usize; 3], d| [a[0], a[1], a[2], d];
    Data {
        q: Owned::random(with(t, s.key_dim), c.packed, 1),
        k: Owned::random(with(kv, s.key_dim), c.packed, 2),
        v: Owned::random(with(kv, s.value_dim), c.packed, 3),
        d_out: Owned::random(with(t, s.value_dim), c.packed, 4),
        d_lse: random(t.iter().product(), 5).into_iter().map(R::from_f64).collect(),
    }
}

/// out, lse, dq, dk, dv; what is written is poisoned first, and gradients are added to 0.5 where `accumulate`.
fn compute<R: Real>(c: &Case, d: &Data<R>, mode: Mode, accumulate: bool) -> [Vec<f64>; 5] {
    let p = Problem { sizes: c.sizes, scale: 1.7, lengths: c.lengths.as_deref(), features: None };
    let (q, k, v) = (d.q.as_ref(), d.k.as_ref(), d.v.as_ref());
    let mut out = d.d_out.filled(f64::NAN);
    let mut lse = vec![R::from_f64(f64::NAN); d.d_lse.len()];
    forward(&p, q, k, v, &out.as_mut(), &mut lse, mode);
    let start = if accumulate { 0.5 } else { f64::NAN };
    let (mut dq, mut dk, mut dv) = (d.q.filled(start), d.k.filled(start), d.v.filled(start));
    let to = [dq.as_mut(), dk.as_mut(), dv.as_mut()].map(|to| Some(Gradient { to, accumulate }));
    let from = Saved { q, k, v, out: out.as_ref(), lse: &lse, d_out: Some(d.d_out.as_ref()), d_lse: Some(&d.d_lse) };
    backward(&p, &from, &Gradients { dq: to[0], dk: to[1], dv: to[2], d_bias: None }, mode);
    [out.values(), lse.iter().map(|x| x.to_f64()).collect(), dq.values(), dk.values(), dv.values()]
}

/// The largest difference; infinities and NaN must stand in the same places.
fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let one = |(&a, &b): (&f64, &f64)| {
        if a == b || a.is_nan() && b.is_nan() {
            0.0
        } else if (a - b).is_nan() {
            f64::INFINITY
        } else {
            (a - b).abs()
        }
    };
    a.iter().zip(b).map(one).fold(0.0, f64::max)
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        case([1, 1, 1, 1, 1], [1, 1], true, None),
        case([2, 3, 1, 37, 65], [16, 16], true, Some(&[0, 40])),
        case([1, 4, 2, 127, 63], [37, 2], true, None),
        case([2, 2, 2, 63, 127], [1, 40], false, Some(&[127, 5])),
        case([1, 2, 1, 150, 300], [80, 37], true, Some(&[280])),
        case([1, 1, 1, 600, 530], [16, 5], true, None),
        case([1, 2, 2, 513, 257], [3, 64], false, None),
        case([1, 1, 1, 65, 1], [128, 96], true, None),
        case([0, 2, 1, 5, 5], [4, 4], true, None),
        case([1, 2, 1, 0, 5], [4, 4], false, None),
        case([1, 2, 1, 5, 0], [4, 4], true, None),
    ];
    let mut packed = case([2, 3, 3, 130, 130], [16, 16], true, None);
    packed.packed = true;
    cases.push(packed);
    cases
}

/// Runs on one thread with each instruction set of this machine.
fn at_every_level(work: impl Fn() + Send + Sync) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for level in Level::available() {
        pool.install(|| {
            FORCED.set(Some(level));
            work();
        });
    }
}

#[test]
fn fast_is_the_definition() {
    at_every_level(check_fast);
}

fn check_fast() {
    for c in cases() {
        for accumulate in [false, true] {
            let d = data::<f64>(&c);
            let (expected, got) =
                (compute(&c, &d, Mode::Definition, accumulate), compute(&c, &d, Mode::Fast, accumulate));
            for (name, (a, b)) in ["out", "lse", "dq", "dk", "dv"].iter().zip(expected.iter().zip(&got)) {
                assert!(a.iter().all(|x| !x.is_nan()), "{c:?}: {name} of the definition");
                assert!(difference(a, b) < 1e-11, "{c:?}: {name} differs by {:e}", difference(a, b));
            }
        }
    }
}

#[test]
fn single_precision_is_close() {
    at_every_level(check_single_precision);
}

fn check_single_precision() {
    for c in cases() {
        let expected = compute(&c, &data::<f64>(&c), Mode::Definition, false);
        let (plain, fast) =
            (compute(&c, &data::<f32>(&c), Mode::Definition, false), compute(&c, &data::<f32>(&c), Mode::Fast, false));
        for i in 0..5 {
            let largest = expected[i].iter().filter(|x| x.is_finite()).fold(0.1, |m: f64, x| m.max(x.abs()));
            let (plain, fast) = (difference(&expected[i], &plain[i]), difference(&expected[i], &fast[i]));
            // 1e-6 relative is what rounding the inputs to f32 alone may cost.
            assert!(fast <= 2.0 * plain + 2e-6 * largest, "{c:?}: {i}: {fast:e}, plain {plain:e}");
        }
    }
}

#[test]
fn backward_is_the_derivative_of_forward() {
    let c = case([1, 2, 1, 4, 5], [3, 2], true, Some(&[4]));
    let d = data::<f64>(&c);
    let gradients = compute(&c, &d, Mode::Definition, false);
    let loss = |d: &Data<f64>| {
        let p = Problem { sizes: c.sizes, scale: 1.7, lengths: c.lengths.as_deref(), features: None };
        let mut out = d.d_out.filled(0.0);
        let mut lse = vec![0.0; d.d_lse.len()];
        forward(&p, d.q.as_ref(), d.k.as_ref(), d.v.as_ref(), &out.as_mut(), &mut lse, Mode::Definition);
        let finite = lse.iter().zip(&d.d_lse).filter(|(x, _)| x.is_finite()).map(|(x, d)| x * d).sum::<f64>();
        out.data.iter().zip(&d.d_out.data).map(|(x, d)| x * d).sum::<f64>() + finite
    };
    type Input = fn(&mut Data<f64>) -> &mut Vec<f64>;
    let inputs: [Input; 3] = [|d| &mut d.q.data, |d| &mut d.k.data, |d| &mut d.v.data];
    for (input, gradient) in inputs.iter().zip(&gradients[2..]) {
        for (i, &expected) in gradient.iter().enumerate() {
            let mut moved = data::<f64>(&c);
            let step = 1e-5;
            input(&mut moved)[i] += step;
            let up = loss(&moved);
            input(&mut moved)[i] -= 2.0 * step;
            assert!(((up - loss(&moved)) / (2.0 * step) - expected).abs() < 1e-8);
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let c = case([1, 2, 1, 700, 600], [16, 16], true, None);
    let d = data::<f32>(&c);
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| compute(&c, &d, Mode::Fast, false))
    };
    let one = on(1);
    for threads in [2, 5] {
        assert!(one.iter().flatten().zip(on(threads).iter().flatten()).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}

#[test]
fn nan_goes_where_it_is_visible_and_nowhere_else() {
    at_every_level(check_nan);
}

fn check_nan() {
    let c = case([1, 1, 1, 70, 70], [16, 16], true, None);
    for place in 0..6 {
        let mut d = data::<f64>(&c);
        let value = if place < 3 { f64::NAN } else { f64::INFINITY };
        [&mut d.q, &mut d.k, &mut d.v][place % 3].data[40 * 16 + 3] = value;
        let (expected, got) = (compute(&c, &d, Mode::Definition, false), compute(&c, &d, Mode::Fast, false));
        for i in 0..5 {
            assert!(expected[0].iter().any(|x| !x.is_finite()) && expected[0][..16].iter().all(|x| x.is_finite()));
            let same = expected[i].iter().zip(&got[i]).all(|(a, b)| a.is_nan() == b.is_nan());
            assert!(same, "place {place}, tensor {i}");
        }
    }
}
