use super::*;

/// Four keys in three dimensions, as the course has them: no query reaches more than three scores at will.
fn four() -> Keys {
    let rows = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, -1.0, 0.5]];
    Keys::new(rows.map(Vec::from).to_vec(), 1.0).unwrap()
}

fn weights(keys: &Keys, query: &[f64]) -> Vec<f64> {
    let scores = keys.scores(query);
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let all: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
    let sum: f64 = all.iter().sum();
    all.iter().map(|x| x / sum).collect()
}

fn query(found: Result<Found>) -> Query {
    match found.unwrap() {
        Found::Query(query) => query,
        Found::Impossible(mixture) => panic!("impossible: {mixture:?}"),
    }
}

fn near(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12)
}

#[test]
fn k_100_selects_each_value_although_100_times_the_identity_is_out_of_reach() {
    let keys = four();
    for i in 0..4 {
        let found = query(keys.select(i, 100.0));
        let scores = keys.scores(&found.query);
        let next = (0..4).filter(|&j| j != i).map(|j| scores[j]).fold(f64::MIN, f64::max);
        // The gap is attained, by the margin's promise with the shortest query.
        assert!((scores[i] - next - 100.0).abs() < 1e-9, "{scores:?}");
        assert!((length(&found.query) * found.margin - 100.0).abs() < 1e-9);
        let weight = weights(&keys, &found.query)[i];
        assert!(weight >= found.bound && 1.0 - weight < 1e-40);
    }
    // Orthonormal keys: the distance of one from the others' hull is that of (1,0,0) from (0,½,½).
    let apart = Keys::new(four().rows[..3].to_vec(), 1.0).unwrap();
    assert!((query(apart.select(0, 100.0)).margin - 1.5f64.sqrt()).abs() < 1e-12);
    // Half the scale, half the margin.
    let half = Keys::new(four().rows[..3].to_vec(), 0.5).unwrap();
    assert!((query(half.select(0, 100.0)).margin - 1.5f64.sqrt() / 2.0).abs() < 1e-12);
}

#[test]
fn scores_3_3_2_3_average_the_first_two() {
    // The course's scores (3, 3, −2, −3), on keys that admit them: k₃ = −k₀. A weight is e³/(2e³ + e⁻² + e⁻³).
    let rows = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]];
    let keys = Keys::new(rows.map(Vec::from).to_vec(), 1.0).unwrap();
    let course = [3.0, 3.0, -2.0];
    assert_eq!(keys.scores(&course), [3.0, 3.0, -2.0, -3.0]);
    assert!((weights(&keys, &course)[0] - 0.4977063949).abs() < 1e-9);
    let found = query(keys.average(&[0, 1], 5.0));
    let scores = keys.scores(&found.query);
    assert!((scores[0] - scores[1]).abs() < 1e-12 && scores[0] - scores[2].max(scores[3]) > 5.0 - 1e-9);
    // With the course's gap of 5, a shorter query than the course's.
    assert!(length(&found.query) < length(&course));
    let attained = weights(&keys, &query(keys.average(&[0, 1], 100.0)).query);
    assert!(near(&attained, &[0.5, 0.5, 0.0, 0.0]), "{attained:?}");
}

#[test]
fn a_query_of_zeros_averages_all() {
    let keys = four();
    let found = query(keys.average(&[0, 1, 2, 3], 100.0));
    assert_eq!((found.query.clone(), found.bound), (vec![0.0; 3], 0.25));
    assert!(near(&weights(&keys, &found.query), &[0.25; 4]));
}

#[test]
fn k_2_becoming_k_0_averages_three() {
    let keys = four();
    let asked = query(keys.average(&[0, 1], 100.0)).query;
    let Replacement::Key { key, gap } = keys.replace(2, &asked, Goal::Average, false, 100.0).unwrap() else {
        panic!("possible")
    };
    assert_eq!(gap, 0.0);
    assert!(key == keys.rows()[0] || key == keys.rows()[1]);
    let third = 1.0 / 3.0;
    assert!(near(&weights(&keys.with(2, key), &asked), &[third, third, third, 0.0]));
    // Of length 1, another key does it, as the query is long enough.
    let Replacement::Key { key, .. } = keys.replace(2, &asked, Goal::Average, true, 100.0).unwrap() else {
        panic!("possible")
    };
    assert!((length(&key) - 1.0).abs() < 1e-12);
    assert!(near(&weights(&keys.with(2, key), &asked), &[third, third, third, 0.0]));
}

#[test]
fn the_best_key_of_length_1_lies_along_the_query() {
    let keys = four();
    let returned = |q: &[f64]| keys.replace(2, q, Goal::Return, true, 100.0).unwrap();
    // Others score 0, 300 and −300 at most; ‖q‖ is 500.
    let Replacement::Key { key, gap } = returned(&[0.0, 300.0, 400.0]) else { panic!("possible") };
    assert!(near(&key, &[0.0, 0.6, 0.8]) && (gap - 200.0).abs() < 1e-9);
    assert!(weights(&keys.with(2, key), &[0.0, 300.0, 400.0])[2] > 1.0 - 1e-12);
    // ‖q‖ = 1.03 does not far exceed the score 1 of key 0, and so v₂ is not returned alone.
    let Replacement::Key { key, .. } = returned(&[1.0, 0.25, 0.0]) else { panic!("possible") };
    assert!(weights(&keys.with(2, key), &[1.0, 0.25, 0.0])[2] < 0.5);
    // Along k₀ nothing of length 1 scores more than k₀ does.
    assert!(matches!(returned(&[5.0, 0.0, 0.0]), Replacement::Impossible(_)));
    assert!(matches!(returned(&[0.0; 3]), Replacement::Impossible(_)));
    // Of any length it can.
    let free = keys.replace(2, &[5.0, 0.0, 0.0], Goal::Return, false, 7.0).unwrap();
    let Replacement::Key { key, gap } = free else { panic!("possible") };
    assert_eq!((gap, keys.with(2, key).scores(&[5.0, 0.0, 0.0])[2]), (7.0, 12.0));
}

#[test]
fn what_is_impossible_is_proved_by_a_mixture() {
    // Key 2 lies between 0 and 1; key 4 is key 3.
    let rows = [[0.0, 0.0], [4.0, 0.0], [1.0, 0.0], [0.0, 4.0], [0.0, 4.0]];
    let keys = Keys::new(rows.map(Vec::from).to_vec(), 1.0).unwrap();
    let mixture = |found: Result<Found>| match found.unwrap() {
        Found::Impossible(mixture) => mixture,
        Found::Query(query) => panic!("{query:?}"),
    };
    let [(0, a), (1, b)] = mixture(keys.select(2, 1.0))[..] else { panic!("keys 0 and 1") };
    assert!(near(&[a, b], &[0.75, 0.25]));
    assert_eq!(mixture(keys.select(3, 1.0)), [(4, 1.0)]);
    assert!(matches!(keys.select(0, 1.0).unwrap(), Found::Query(_)));
    // Both of the same point can be chosen; and the two ends of an edge only together with what lies on it.
    assert!(matches!(keys.average(&[3, 4], 1.0).unwrap(), Found::Query(_)));
    assert_eq!(mixture(keys.average(&[0, 1], 1.0)), [(2, 1.0)]);
    assert!(matches!(keys.average(&[0, 1, 2], 1.0).unwrap(), Found::Query(_)));
    // The diagonals of a square cross: neither pair can be averaged alone.
    let square = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]];
    let square = Keys::new(square.map(Vec::from).to_vec(), 1.0).unwrap();
    let [(1, a), (3, b)] = mixture(square.average(&[0, 2], 1.0))[..] else { panic!("the other diagonal") };
    assert!(near(&[a, b], &[0.5, 0.5]));
    assert!(matches!(square.average(&[0, 1], 1.0).unwrap(), Found::Query(_)));
}

#[test]
fn mistakes_are_named() {
    let error = |result: Result<Found>| result.unwrap_err().to_string();
    assert!(error(four().select(4, 1.0)).contains("key 4: does not exist; give a number from 0 to 3"));
    assert!(error(four().average(&[1, 1], 1.0)).contains("key 1: is named twice"));
    assert!(error(four().average(&[], 1.0)).contains("are none"));
    assert!(error(four().select(0, f64::NAN)).contains("--gap NaN"));
    let ragged = Keys::new(vec![vec![1.0], vec![1.0, 2.0]], 1.0).unwrap_err().to_string();
    assert!(ragged.contains("key 1 is not 1 finite numbers"), "{ragged}");
    assert!(Keys::new(vec![vec![]], 1.0).is_err() && Keys::new(vec![vec![1.0]], 0.0).is_err());
    assert!(four().replace(0, &[1.0], Goal::Return, false, 1.0).is_err());
}
