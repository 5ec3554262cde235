use super::step::{Learn, Tables};
use super::*;
use crate::data::Splitter;

fn corpus(lines: &[&str], min_count: u64) -> Corpus {
    let lines = lines.iter().map(|&line| line.into()).collect();
    Corpus::of_lines(lines, Splitter::Whitespace, false, min_count).unwrap()
}

#[test]
fn rare_words_are_left_out_before_windows() {
    let corpus = corpus(&["b a x b", "", "y", "a b a z", "b"], 2);
    assert_eq!(corpus.index.words(), ["b", "a"]);
    assert_eq!((&corpus.counts[..], &corpus.tokens[..]), (&[4, 3][..], &[0, 1, 0, 1, 0, 1, 0][..]));
    assert_eq!(corpus.ends, [3, 6, 7]);
    assert!(corpus.remarks[0].starts_with("left out: 3 words that occur fewer than 2 times (30.0 %"));
    let none = Corpus::of_lines(vec!["a b".into()], Splitter::Words, false, 2).unwrap_err().to_string();
    assert!(none.contains("--min-count 2: none of 2 words occurs so often"), "{none}");
}

#[test]
fn long_lines_are_cut_and_units_cover_the_text() {
    let line = "a b ".repeat(12_500);
    let corpus = corpus(&[&line, "a", &line], 1);
    assert_eq!(corpus.ends, [10_000, 20_000, 25_000, 25_001, 35_001, 45_001, 50_001]);
    let units = units(&corpus.ends);
    assert_eq!(units, [0..1, 1..2, 2..5, 5..6, 6..7]);
}

/// −ln σ(u_c·v) − Σ ln σ(−u_n·v), from its definition.
fn definition(v: &[f64], right: &[f64], wrong: &[&[f64]]) -> f64 {
    let score = |u: &[f64]| u.iter().zip(v).map(|(u, v)| u * v).sum::<f64>();
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    -sigmoid(score(right)).ln() - wrong.iter().map(|u| sigmoid(-score(u)).ln()).sum::<f64>()
}

/// One pair moves every row by rate times the gradient of the loss, by finite differences of the definition.
#[test]
fn a_step_goes_down_the_gradient() {
    let dim = 21;
    let value = |stream: u32| {
        move |row: usize, place: usize| Philox::new(3, stream, 0).uniform((row * dim + place) as u64) - 0.5
    };
    // Three words: 0 beside 1 in the text, and 2 always the wrong answer.
    let (mut target, mut context) = (Rows::new(3, dim, value(1)), Rows::new(3, dim, value(2)));
    let (v0, u0) = (target.values(), context.values());
    let wrong = Alias::new([0.0, 0.0, 1.0].into_iter());
    let rate = 0.01f32;
    let seen = {
        let tables =
            Tables { target: &target, context: &context, wrong: &wrong, keep: &[1.0; 3], window: 1, negative: 1 };
        let random = Philox::new(1, 1, 1);
        vectorise(Learn { tables: &tables, tokens: &[0, 1], ends: &[2], place: 0, random, rate })
    };
    // The second place meets what the first has changed; so the first is recomputed, and the second from there.
    let mut rows: [Vec<Vec<f64>>; 2] =
        [&v0, &u0].map(|t| t.chunks(dim).map(|r| r.iter().map(|&x| x as f64).collect()).collect());
    let mut first_loss = 0.0;
    for (middle, beside) in [(0, 1), (1, 0)] {
        let loss = |v: &[f64], c: &[f64], n: &[f64]| definition(v, c, &[n]);
        let [v, c, n] = [&rows[0][middle], &rows[1][beside], &rows[1][2]].map(Vec::clone);
        first_loss = if middle == 0 { loss(&v, &c, &n) } else { first_loss };
        let slope = |which: usize, i: usize| {
            let at = |x: f64| {
                let mut all = [v.clone(), c.clone(), n.clone()];
                all[which][i] += x;
                loss(&all[0], &all[1], &all[2])
            };
            (at(1e-5) - at(-1e-5)) / 2e-5
        };
        let mut move_row = |table: usize, row: usize, which: usize| {
            rows[table][row].iter_mut().enumerate().for_each(|(i, x)| *x -= rate as f64 * slope(which, i));
        };
        move_row(0, middle, 0);
        move_row(1, beside, 1);
        move_row(1, 2, 2);
    }
    for (found, expected) in [(target.values(), &rows[0]), (context.values(), &rows[1])] {
        for (found, expected) in found.iter().zip(expected.iter().flatten()) {
            // A float's rounding near 1, three times.
            assert!((*found as f64 - expected).abs() < 2e-7, "{found} {expected}");
        }
    }
    assert!(seen.pairs == 1 && (seen.loss - first_loss).abs() < 1e-6, "only place 0 is looked at: {seen:?}");
}

/// Two topics that never meet: words of one are nearer to each other than to those of the other, whatever the threads.
#[test]
fn words_that_occur_together_become_alike() {
    let random = Philox::new(5, 0, 0);
    let word = |line: u64, i: u64| format!("{}{}", ["x", "y"][line as usize % 2], random.word(line * 8 + i) % 6);
    let lines: Vec<String> =
        (0..3000).map(|line| (0..8).map(|i| word(line, i)).collect::<Vec<_>>().join(" ")).collect();
    let corpus = Corpus::of_lines(lines, Splitter::Words, false, 1).unwrap();
    let settings = Settings { dim: 10, window: 3, epochs: 3, subsample: 0.0, lr: 0.05, ..Default::default() };
    let mut runs = Vec::new();
    for threads in [1, 1, 3] {
        let (learned, reached) = train(&corpus, &settings, threads, |_| true).unwrap();
        assert_eq!((reached.words, reached.total), (72_000, 72_000));
        // Before anything is known, it is (1 + 5)·ln 2.
        assert!(reached.loss < 3.9, "{}", reached.loss);
        let near = |a: &str, b: &str| {
            let [a, b] = [a, b].map(|w| learned.target.row(corpus.index.get(w).unwrap() as usize));
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        let inside = (1..6).map(|i| near("x0", &format!("x{i}"))).fold(f32::MAX, f32::min);
        let across = (0..6).map(|i| near("x0", &format!("y{i}"))).fold(f32::MIN, f32::max);
        assert!(inside > across + 0.5, "{inside} {across}");
        runs.push(learned);
    }
    assert!(runs[0] == runs[1], "one thread gives the same bits");
    let other = Settings { seed: 2, ..settings };
    assert!(train(&corpus, &other, 1, |_| true).unwrap().0 != runs[0]);
}

#[test]
fn training_stops_when_told_and_refuses_nonsense() {
    let line = "a b c d ".repeat(50_000);
    let corpus = corpus(&[&line], 1);
    let settings = Settings { epochs: 1000, ..Default::default() };
    let (_, reached) = train(&corpus, &settings, 2, |_| false).unwrap();
    assert!(reached.words > 0 && reached.words < reached.total);
    for (bad, flag) in [
        (Settings { dim: 0, ..settings }, "--dim 0"),
        (Settings { lr: f64::NAN, ..settings }, "--lr NaN"),
        (Settings { subsample: -1.0, ..settings }, "--subsample -1"),
    ] {
        assert!(train(&corpus, &bad, 1, |_| true).unwrap_err().to_string().starts_with(flag));
    }
    let one = Corpus::of_lines(vec!["a a".into()], Splitter::Words, false, 1).unwrap();
    assert!(train(&one, &settings, 1, |_| true).unwrap_err().to_string().contains("has 1 words"));
}
