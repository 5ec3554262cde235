//! Tiles with features against the definition, with each instruction set, and what NaN and infinities do there.

use super::*;
use crate::op::Mode;
use crate::ops::dropout::Dropout;

/// What the features read.
struct Inputs {
    slopes: Vec<f64>,
    of_q: Vec<i32>,
    of_k: Vec<i32>,
    mask: Vec<i32>,
    mask_shape: [usize; 4],
    mask_strides: Vec<usize>,
    bias: Owned<f64>,
}

/// Which of them there are.
#[derive(Debug, Clone, Copy, Default)]
struct Chosen {
    window: Option<(usize, usize)>,
    softcap: Option<f64>,
    alibi: bool,
    sequences: bool,
    mask: bool,
    bias: bool,
    dropout: bool,
}

fn inputs(s: &Sizes, broadcast: bool) -> Inputs {
    let shape = [s.batch, if broadcast { 1 } else { s.heads }, if broadcast { 1 } else { s.queries }, s.keys];
    let mut bias = Owned::random(shape, false, 11);
    bias.data.iter_mut().filter(|x| **x < -0.8).for_each(|x| *x = f64::NEG_INFINITY);
    let (t, k) = (s.queries as i32, s.keys as i32);
    Inputs {
        slopes: (1..=s.heads).map(|h| h as f64 / 100.0).collect(),
        of_q: vec![0, t / 3, t / 3, t / 2, t],
        of_k: vec![0, k / 4, k / 2, k / 2, k],
        mask: random(shape.iter().product(), 12).into_iter().map(|x| (x > -0.5) as i32).collect(),
        mask_shape: shape,
        mask_strides: contiguous_strides(&shape),
        bias,
    }
}

fn features<'a>(c: &Chosen, i: &'a Inputs) -> Features<'a, f64> {
    let mask = Ref { data: &i.mask[..], shape: &i.mask_shape, strides: &i.mask_strides };
    Features {
        window: c.window,
        softcap: c.softcap,
        slopes: c.alibi.then_some(&i.slopes[..]),
        sequences: c.sequences.then_some((&i.of_q[..], &i.of_k[..])),
        mask: c.mask.then_some(mask),
        bias: c.bias.then(|| i.bias.as_ref()),
        dropout: c.dropout.then_some((Dropout { p: 0.4, stream: 3 }, &[1, 2, 3])),
    }
}

const NAMES: [&str; 7] = ["out", "lse", "weights", "dq", "dk", "dv", "dbias"];

fn compute(c: &Case, d: &Data<f64>, f: &Features<f64>, mode: Mode, accumulate: bool) -> [Vec<f64>; 7] {
    let p = Problem { sizes: c.sizes, scale: 1.7, lengths: c.lengths.as_deref(), features: Some(*f) };
    let (q, k, v) = (d.q.as_ref(), d.k.as_ref(), d.v.as_ref());
    let mut out = d.d_out.filled(f64::NAN);
    let mut lse = vec![f64::NAN; d.d_lse.len()];
    let mut probs = vec![f64::NAN; d.d_lse.len() * c.sizes.keys];
    forward(&p, q, k, v, &out.as_mut(), &mut lse, mode);
    weights(&p, q, k, &lse, &mut probs, mode);
    let start = if accumulate { 0.5 } else { f64::NAN };
    let (mut dq, mut dk, mut dv) = (d.q.filled(start), d.k.filled(start), d.v.filled(start));
    let [dq_to, dk_to, dv_to] = [&mut dq, &mut dk, &mut dv].map(|to| Some(Gradient { to: to.as_mut(), accumulate }));
    let mut d_bias = f.bias.map(|b| Owned {
        data: vec![start; b.data.len()],
        shape: b.shape.try_into().unwrap(),
        strides: b.strides.to_vec(),
    });
    let d_bias_to = d_bias.as_mut().map(|to| Gradient { to: to.as_mut(), accumulate });
    let from = Saved { q, k, v, out: out.as_ref(), lse: &lse, d_out: Some(d.d_out.as_ref()), d_lse: Some(&d.d_lse) };
    backward(&p, &from, &Gradients { dq: dq_to, dk: dk_to, dv: dv_to, d_bias: d_bias_to }, mode);
    let d_bias = d_bias.map_or(Vec::new(), |d| d.data);
    [out.values(), lse, probs, dq.values(), dk.values(), dv.values(), d_bias]
}

fn chosen() -> Vec<Chosen> {
    let none = Chosen::default();
    let all = Chosen {
        window: Some((60, 20)),
        softcap: Some(0.7),
        alibi: true,
        sequences: false,
        mask: true,
        bias: true,
        dropout: true,
    };
    vec![
        none,
        Chosen { window: Some((40, 7)), ..none },
        Chosen { window: Some((usize::MAX, 0)), ..none },
        Chosen { softcap: Some(0.7), ..none },
        Chosen { alibi: true, ..none },
        Chosen { sequences: true, alibi: true, window: Some((30, 30)), ..none },
        Chosen { mask: true, ..none },
        Chosen { bias: true, ..none },
        Chosen { dropout: true, ..none },
        all,
        Chosen { sequences: true, ..all },
    ]
}

#[test]
fn tiles_are_the_definition() {
    at_every_level(|| {
        for (causal, broadcast) in [(false, true), (true, false)] {
            for chosen in chosen() {
                let batch = if chosen.sequences { 1 } else { 2 };
                let mut c = case([batch, 4, 2, 90, 200], [17, 6], causal, None);
                c.lengths = (!chosen.sequences).then(|| vec![150, 200]);
                let (d, inputs) = (data::<f64>(&c), inputs(&c.sizes, broadcast));
                let f = features(&chosen, &inputs);
                for accumulate in [false, true] {
                    let expected = compute(&c, &d, &f, Mode::Definition, accumulate);
                    let got = compute(&c, &d, &f, Mode::Fast, accumulate);
                    for ((name, a), b) in NAMES.iter().zip(&expected).zip(&got) {
                        assert!(a.iter().all(|x| !x.is_nan()), "{chosen:?}: {name} of the definition");
                        assert!(difference(a, b) < 1e-11, "{chosen:?}: {name} differs by {:e}", difference(a, b));
                    }
                }
            }
        }
    });
}

#[test]
fn nan_reaches_what_sees_it_and_nothing_else() {
    at_every_level(|| {
        for chosen in chosen() {
            let c = case([1, 1, 1, 70, 70], [16, 16], true, None);
            for place in 0..7 {
                let (mut d, mut inputs) = (data::<f64>(&c), inputs(&c.sizes, false));
                let value = if place < 3 || place == 6 { f64::NAN } else { f64::INFINITY };
                if place == 6 {
                    inputs.bias.data[40 * 70 + 39] = value;
                } else {
                    [&mut d.q, &mut d.k, &mut d.v][place % 3].data[40 * 16 + 3] = value;
                }
                let f = features(&chosen, &inputs);
                let expected = compute(&c, &d, &f, Mode::Definition, false);
                let got = compute(&c, &d, &f, Mode::Fast, false);
                assert!(expected[0][..16].iter().all(|x| x.is_finite()), "rows that do not see it are as they were");
                for ((name, a), b) in NAMES.iter().zip(&expected).zip(&got) {
                    let differs = a.iter().zip(b).position(|(a, b)| a.is_nan() != b.is_nan());
                    assert_eq!(differs, None, "{chosen:?}, place {place}: {name}");
                }
            }
        }
    });
}

#[test]
fn dropout_keeps_the_share_and_the_mean() {
    let c = case([1, 2, 2, 300, 300], [4, 4], false, None);
    let inputs = inputs(&c.sizes, true);
    let f = features(&Chosen { dropout: true, ..Default::default() }, &inputs);
    let p = Problem::<f64> { sizes: c.sizes, scale: 1.0, lengths: None, features: Some(f) };
    let n = 2 * 300 * 300;
    let factors: Vec<f64> = (0..n).map(|i| p.kept([0, i / 90_000, i / 300 % 300, i % 300])).collect();
    let kept = factors.iter().filter(|&&x| x > 0.0).count() as f64 / n as f64;
    // Six standard deviations of a share of 0.6.
    assert!((kept - 0.6).abs() < 6.0 * (0.24 / n as f64).sqrt(), "{kept}");
    assert!(factors.iter().all(|&x| x == 0.0 || (x - 1.0 / 0.6).abs() < 1e-12));
}
