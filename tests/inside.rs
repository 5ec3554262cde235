//! Looking inside from outside: `attn heatmap`, `attn probe`, `attn bench tasks`, on the CPU and through the kernels.

#[path = "common/place.rs"]
mod place;

use place::Place;
use serde_json::{Value, json};
use std::fs;

fn json_of(place: &Place, name: &str) -> Value {
    serde_json::from_slice(&fs::read(place.path(name)).unwrap()).unwrap()
}

/// A checkpoint that has learned a little: its second layer is linear attention.
fn checkpoint(place: &Place) {
    place.text("t.txt", "the cat sat on the mat\n".repeat(20));
    place.attn(
        "train lm --text t.txt --layers 2 --heads 2 --width 8 --attention softmax-attention,linear-attention \
         --block-size 8 --batch-size 4 --steps 20 --lr 1e-2 --dropout 0 --save-every 0 --out run",
    );
}

#[test]
fn heatmaps_show_the_weights() {
    let place = Place::new();
    checkpoint(&place);
    place.refuses("heatmap --checkpoint run --text the_cat", &["'_'"]);
    let line = "heatmap --checkpoint run --text thecat --layer 0,1 --head 1";
    let picture = place.attn(&format!("{line} --json cpu.json --out heat.svg --out heat.png"));
    assert!(picture.contains("layer 0, head 1") && picture.contains("layer 1, head 1"), "{picture}");
    assert!(!picture.contains("head 0"), "{picture}");
    place.attn_on("emulator", &format!("{line} --json kernels.json")).unwrap();
    let (cpu, kernels) = (json_of(&place, "cpu.json"), json_of(&place, "kernels.json"));
    assert_eq!(cpu["words"], json!(["t", "h", "e", "c", "a", "t"]));
    let weights = |json: &Value, layer: usize| -> Vec<Vec<f64>> {
        serde_json::from_value(json["layers"][layer]["heads"][0]["weights"].clone()).unwrap()
    };
    for layer in 0..2 {
        for (t, (row, other)) in weights(&cpu, layer).iter().zip(weights(&kernels, layer)).enumerate() {
            assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-5, "layer {layer}, row {t}: {row:?}");
            assert!(row[t + 1..].iter().all(|w| *w == 0.0), "layer {layer}, row {t} looks ahead: {row:?}");
            assert!(row.iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-5), "layer {layer}, row {t}");
        }
    }
    // A cell of the picture for each visible pair, and its labels.
    let svg = fs::read_to_string(place.path("heat.svg")).unwrap();
    assert!(svg.matches("<rect").count() > 2 * 21 && svg.matches(">c<").count() >= 2, "{svg}");
    assert!(fs::read(place.path("heat.png")).unwrap().starts_with(b"\x89PNG"));
    for (flags, words) in [("--layer 2", "--layer 2"), ("--head 0,5", "--head 5"), ("--out heat.gif", "heat.gif")] {
        place.refuses(&format!("heatmap --checkpoint run --text thecat {flags}"), &[words]);
    }
    place.refuses("heatmap --checkpoint run --text thecatthecat", &["12", "8"]);
    place.refuses("heatmap --checkpoint nowhere --text a", &["nowhere"]);
}

/// Four keys in three dimensions: each can be selected, though k·I is out of reach by rank.
#[test]
fn a_probe_selects_or_says_why_not() {
    let place = Place::new();
    place.text("m.json", r#"{"k": [[1,0,0],[0,1,0],[0,0,1],[-1,-1,0]], "v": [[10],[20],[30],[40]]}"#);
    let found = place.attn("probe identity --input m.json --json found.json");
    for value in ["10.0000", "20.0000", "30.0000", "40.0000"] {
        assert!(found.contains(value), "{value} is missing in {found}");
    }
    let averaged = place.attn("probe average --input m.json --keys 0,1");
    assert!(averaged.contains("value    15.0000"), "{averaged}");
    assert!(place.attn("probe average --input m.json").contains("value    25.0000"));
    // The middle of the others cannot score above all of them.
    place.text("inside.json", r#"{"k": [[1,0],[0,1],[-1,0],[0,-1],[0.1,0.1]]}"#);
    let output = place.command("probe select --input inside.json --key 4").assert().code(1);
    let said = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    assert!(said.contains("impossible") && said.contains("k0"), "{said}");
    place.refuses("probe select --input m.json --key 4", &["key 4", "3"]);
    place.refuses("probe query --input m.json --query=1,2", &["--query", "3"]);
    place.text("ragged.json", r#"{"k": [[1,0],[0]]}"#);
    place.refuses("probe identity --input ragged.json", &["ragged.json"]);
}

#[test]
fn tasks_are_learned_side_by_side() {
    let place = Place::new();
    let line = "bench tasks --task copy --sizes 1,2 --layers 1 --width 8 --batch-size 8 --seeds 1 --steps 2";
    let table = place.attn(&format!("{line} --out cpu"));
    assert!(table.contains("1 letters") && table.contains("mean-similarity-attention"), "{table}");
    place.attn_on("emulator", &format!("{line} --json kernels.json")).unwrap();
    let (cpu, kernels) = (json_of(&place, "cpu/tasks.json"), json_of(&place, "kernels.json"));
    let rows = |json: &Value| json["rows"].as_array().unwrap().clone();
    assert_eq!(rows(&cpu).len(), 3 * 2);
    for (a, b) in rows(&cpu).iter().zip(rows(&kernels)) {
        let losses = [a, &b].map(|row| row["loss"].as_f64().unwrap());
        assert!((losses[0] / losses[1] - 1.0).abs() < 1e-4, "{a} {b}");
    }
    assert!(fs::read_to_string(place.path("cpu/tasks.svg")).unwrap().contains("softmax-attention"));
    place.refuses("bench tasks --sizes 0", &["--sizes"]);
    place.refuses("bench tasks --task recall --sizes 4 --variants gru", &["gru"]);
}
