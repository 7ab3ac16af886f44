//! The seeds of the fuzz targets, and inputs near them, through the same functions as in a run.
#![expect(
    clippy::expect_used,
    reason = "a seed that cannot be read fails the test"
)]

#[path = "../../../fuzz/src/lib.rs"]
mod fuzz;

#[test]
fn every_seed_and_every_input_near_it_is_read_without_harm() {
    let corpora = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (name, target) in fuzz::TARGETS {
        let mut seeds = 0;
        for entry in std::fs::read_dir(corpora.join(name)).unwrap() {
            let seed = std::fs::read(entry.unwrap().path()).unwrap();
            seeds += 1;
            target(&seed);
            // Cut off anywhere, and with a bit turned here and there.
            let step = seed.len() / 200 + 1;
            for at in (0..seed.len()).step_by(step) {
                target(&seed[..at]);
                let mut near = seed.clone();
                near[at] ^= 1 << (at % 8);
                target(&near);
            }
        }
        assert!(seeds > 0, "{name} has no seeds");
    }
}
