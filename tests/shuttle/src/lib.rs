//! What threads do at once in one merged tree comes to what they could have done one after the other.
//!
//! A few threads each make a few calls. What a plain directory answers to them in every order there is, and
//! looks like afterwards, is found out first. Shuttle then runs the threads on a merged tree, again and again,
//! switching at any lock, and each time they must have seen, and left behind, what one of the orders does; so
//! must the next mount of the same upper find it.
#![cfg(test)]

mod calls;
mod merged;
mod plain;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use calls::{Answer, Call, Tree};
use merged::Merged;
use plain::Plain;

/// What the threads were answered, each in its order, and the tree that they left.
type Outcome = (Vec<Vec<Answer>>, Tree);

/// How often the threads run with the same calls.
const RUNS: usize = 40;

/// What the calls are chosen by: some seconds' worth, or those from `THAWFS_SHUTTLE_FROM` up to and excluding
/// `THAWFS_SHUTTLE_TO`.
fn seeds() -> std::ops::Range<u64> {
    let given = |name| std::env::var(name).ok().map(|seed| seed.parse().expect("a number"));
    given("THAWFS_SHUTTLE_FROM").unwrap_or(0)..given("THAWFS_SHUTTLE_TO").unwrap_or(30)
}

/// Every outcome that the threads can have one after the other, with an order that has it.
fn outcomes(threads: &[Vec<Call>]) -> BTreeMap<Outcome, Vec<usize>> {
    let mut outcomes = BTreeMap::new();
    for order in orders(&threads.iter().map(Vec::len).collect::<Vec<_>>()) {
        let plain = Plain::new();
        let mut answers = vec![Vec::new(); threads.len()];
        for &thread in &order {
            let call = &threads[thread][answers[thread].len()];
            let answer = plain.answer(call);
            answers[thread].push(answer);
        }
        outcomes.entry((answers, plain.tree())).or_insert(order);
    }
    outcomes
}

/// Every order in which threads of so many calls can make them.
fn orders(calls: &[usize]) -> BTreeSet<Vec<usize>> {
    if calls.iter().all(|left| *left == 0) {
        return BTreeSet::from([Vec::new()]);
    }
    let mut all = BTreeSet::new();
    for first in (0..calls.len()).filter(|thread| calls[*thread] > 0) {
        let mut left = calls.to_vec();
        left[first] -= 1;
        all.extend(orders(&left).into_iter().map(|order| [vec![first], order].concat()));
    }
    all
}

/// Runs the threads as often as is worth it, and compares.
fn check(threads: Vec<Vec<Call>>) {
    let allowed = Arc::new(outcomes(&threads));
    // Shown where a run fails.
    println!("{threads:?}");
    let run = move || {
        let merged = Arc::new(Merged::new());
        let running: Vec<_> = threads
            .iter()
            .map(|calls| {
                let (merged, calls) = (Arc::clone(&merged), calls.clone());
                let answer = move || calls.iter().map(|call| merged.answer(call)).collect();
                shuttle::thread::spawn(answer)
            })
            .collect();
        let answers: Vec<Vec<Answer>> =
            running.into_iter().map(|thread| thread.join().unwrap()).collect();
        let merged = Arc::into_inner(merged).unwrap();
        let (now, later) = merged.end();
        assert_eq!(now, later, "the next mount shows another tree after {threads:#?}");
        let outcome = (answers, now);
        assert!(
            allowed.contains_key(&outcome),
            "no order of {threads:#?}\ncomes to {outcome:#?}\nbut to {:#?}",
            *allowed,
        );
    };
    let mut config = shuttle::Config::new();
    // Blocks are decoded on them.
    config.stack_size = 1 << 20;
    let scheduler = shuttle::scheduler::RandomScheduler::new_from_seed(1, RUNS);
    shuttle::Runner::new(scheduler, config).run(run);
}

#[test]
fn what_two_threads_do_by_chance_has_an_order() {
    for seed in seeds() {
        let mut chance = fastrand::Rng::with_seed(seed);
        check((0..2).map(|_| (0..3).map(|_| Call::by(&mut chance)).collect()).collect());
    }
}

#[test]
fn what_three_threads_do_by_chance_has_an_order() {
    for seed in seeds() {
        let mut chance = fastrand::Rng::with_seed(seed ^ 1 << 32);
        check((0..3).map(|_| (0..2).map(|_| Call::by(&mut chance)).collect()).collect());
    }
}

#[test]
fn a_file_may_be_looked_up_by_another_name_while_it_is_copied() {
    // The directory of the other name is not in the upper.
    check(vec![vec![Call::Lookup(2, "f")], vec![Call::Chmod(1, 0o600)]]);
    check(vec![vec![Call::Lookup(2, "f")], vec![Call::Write(1, 0, b'a')]]);
    check(vec![vec![Call::Unlink(2, "f")], vec![Call::Link(1, 0, "n")]]);
}

#[test]
fn a_write_finds_the_copy_that_another_call_has_put_in_place() {
    // Opened while the file was in the archive alone. As it was found, by chance.
    check(vec![
        vec![Call::Link(1, 0, "n"), Call::Write(1, 2450, 102)],
        vec![Call::Write(0, 1608, 100), Call::Unlink(0, "x")],
        vec![Call::Rename(0, "m", 1, "m"), Call::Link(0, 1, "n")],
    ]);
}
