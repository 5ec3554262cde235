//! hₜ = xₜ − hₜ₋₁ from h₀ = 0, y = σ(1000·h): a recurrence of one unit tells which of two interleaved sums is larger. Through
//! `attn run rnn`, all lengths in one ragged batch.

use assert_cmd::Command;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};

/// σ(1000·h) of each sequence's last state. The exponential may overflow; its inverse is then 0.
fn sigmoid(h: f64) -> f64 {
    1.0 / (1.0 + (-1000.0 * h).exp())
}

fn last_states(sequences: &[&[f64]], dtype: &str) -> Vec<f64> {
    let longest = sequences.iter().map(|s| s.len()).max().unwrap();
    // What lies past a length is not read: NaN would show.
    let padded = |s: &&[f64]| (0..longest).map(|t| s.get(t).copied().unwrap_or(f64::NAN)).collect::<Vec<f64>>();
    let bytes = |values: &[f64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let x = bytes(&sequences.iter().flat_map(padded).collect::<Vec<f64>>());
    let lengths: Vec<u8> = sequences.iter().flat_map(|s| (s.len() as i64).to_le_bytes()).collect();
    let [one, minus_one] = [1.0, -1.0].map(|w: f64| bytes(&[w]));
    let view = |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).unwrap();
    let tensors = [
        ("x", view(Dtype::F64, &[sequences.len(), longest, 1], &x[..])),
        ("lengths", view(Dtype::I64, &[sequences.len()], &lengths)),
        ("weight_ih_l0", view(Dtype::F64, &[1, 1], &one)),
        ("weight_hh_l0", view(Dtype::F64, &[1, 1], &minus_one)),
    ];
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    serialize_to_file(tensors, None, &input).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
    command.args(["run", "rnn", "--nonlinearity", "identity", "--device", "cpu", "--dtype", dtype, "--input"]);
    command.arg(&input).arg("--output").arg(&output).assert().success();
    let bytes = std::fs::read(&output).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let (h_n, out) = (all.tensor("h_n").unwrap(), all.tensor("out").unwrap());
    assert_eq!(h_n.shape(), [1, sequences.len(), 1]);
    let read = |view: &TensorView| -> Vec<f64> {
        match view.dtype() {
            Dtype::F32 => {
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64).collect()
            }
            _ => view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
        }
    };
    assert!(read(&out).iter().all(|x| x.is_finite()), "what lies past a length came in");
    read(&h_n)
}

#[test]
fn the_last_state_tells_which_places_sum_to_more() {
    // Places are counted from 1. Of an even length, 1 says that the even-placed sum is larger; of an odd one, the last place
    // is odd, and 1 says that the odd-placed sum is.
    let cases: [(&[f64], f64); 13] = [
        (&[1.0, 2.0, 3.0, 5.0], 1.0),
        (&[5.0, 2.0, 3.0, 1.0], 0.0),
        (&[1.0, 9.0, 3.0], 0.0),
        (&[4.0, 5.0, 3.0], 1.0),
        (&[0.25, 0.5], 1.0),
        (&[1.0], 1.0),
        (&[-1.0], 0.0),
        // Equal sums, of even and odd length.
        (&[2.0, 2.0], 0.5),
        (&[1.0, 4.0, 3.0], 0.5),
        (&[0.0], 0.5),
        (&[3.0, 1.0, 2.0, 4.0], 0.5),
        // Sums far beyond what an exponential holds.
        (&[-1e6, 1e6, -1e6, 1e6, -1e6, 1e6], 1.0),
        (&[1e6, -1e6, 1e6, -1e6, 1e6, -1e6], 0.0),
    ];
    let sequences: Vec<&[f64]> = cases.iter().map(|(x, _)| *x).collect();
    for dtype in ["f64", "f32"] {
        for (h, (x, expected)) in last_states(&sequences, dtype).into_iter().zip(&cases) {
            let (y, even) = (sigmoid(h), x.len() % 2 == 0);
            assert_eq!(y, *expected, "{dtype} {x:?}: h {h}");
            // The definition, by summing.
            let sum = |parity: usize| x.iter().skip(parity).step_by(2).sum::<f64>();
            let (odd_placed, even_placed) = (sum(0), sum(1));
            assert_eq!(h, if even { even_placed - odd_placed } else { odd_placed - even_placed }, "{dtype} {x:?}");
        }
    }
}
