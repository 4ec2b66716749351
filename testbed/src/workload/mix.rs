//! What a transaction of the workload is made of: a seeded choice among many small shapes.

use super::rng::Rng;
use super::schema::Table;
use super::tally::Effect;
use super::{pgbench, shapes};

/// One statement, and what its row count means.
pub(super) struct Step {
    pub(super) sql: String,
    pub(super) effect: Effect,
}

/// A transaction under construction.
pub(super) struct Transaction {
    pub(super) steps: Vec<Step>,
    /// Whether it ends with COMMIT.
    pub(super) commits: bool,
}

impl Transaction {
    pub(super) fn push(&mut self, effect: Effect, sql: impl Into<String>) {
        self.steps.push(Step {
            sql: sql.into(),
            effect,
        });
    }
}

/// Which shapes are drawn.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    pub(super) truncate: bool,
    pub(super) pgbench_scale: Option<u32>,
}

type Shape = fn(&mut Transaction, &mut Rng);

/// The shapes with their weights.
const SHAPES: &[(u64, Shape)] = &[
    (14, shapes::new_order),
    (5, shapes::new_customers),
    (2, shapes::delete_customer),
    (3, shapes::delete_order),
    (12, shapes::update_order),
    (4, shapes::change_items),
    (10, shapes::retitle_document),
    (3, shapes::rewrite_document),
    (2, shapes::replace_document),
    (8, shapes::transfer),
    (3, shapes::swap_handles),
    (4, shapes::change_account_key),
    (3, shapes::delete_and_reinsert_account),
    (8, shapes::audit),
    (6, shapes::odd_names),
    (8, shapes::events),
    (1, shapes::many_events),
    (5, shapes::scratch),
];

/// Of a hundred transactions on a database with pgbench tables, this many are pgbench's.
const PGBENCH_SHARE: u64 = 50;

/// Draws a transaction, `BEGIN` and `COMMIT` included.
pub(super) fn draw(rng: &mut Rng, choice: Choice) -> Transaction {
    let mut transaction = Transaction {
        steps: Vec::new(),
        commits: true,
    };
    transaction.push(Effect::None, "BEGIN");
    match choice.pgbench_scale {
        Some(scale) if rng.chance(PGBENCH_SHARE) => pgbench::tpc_b(&mut transaction, rng, scale),
        _ => draw_shapes(&mut transaction, rng, choice),
    }
    transaction
}

/// Ends it: with COMMIT, or ROLLBACK for a few.
pub(super) fn finish(transaction: &mut Transaction, rng: &mut Rng) {
    transaction.commits = !rng.chance(2);
    let end = if transaction.commits { "COMMIT" } else { "ROLLBACK" };
    transaction.push(Effect::None, end);
}

fn draw_shapes(transaction: &mut Transaction, rng: &mut Rng, choice: Choice) {
    if choice.truncate && rng.below(300) == 0 {
        // A reader of the table, such as a copy that takes minutes, must not make every writer queue
        // behind the TRUNCATE's lock request.
        transaction.push(Effect::None, "SET LOCAL lock_timeout = '100ms'");
        transaction.push(Effect::Truncate(Table::Scratch), "TRUNCATE shop.scratch");
        return;
    }
    for _ in 0..rng.between(1, 3) {
        match rng.below(20) {
            // Taken back: none of it may reach a replica.
            0 => {
                transaction.push(Effect::None, "SAVEPOINT undone");
                let from = transaction.steps.len();
                draw_shape(transaction, rng);
                for step in transaction.steps.iter_mut().skip(from) {
                    step.effect = Effect::None;
                }
                transaction.push(Effect::None, "ROLLBACK TO SAVEPOINT undone");
            }
            // A subtransaction that stays.
            1 => {
                transaction.push(Effect::None, "SAVEPOINT kept");
                draw_shape(transaction, rng);
                transaction.push(Effect::None, "RELEASE SAVEPOINT kept");
            }
            _ => draw_shape(transaction, rng),
        }
    }
}

fn draw_shape(transaction: &mut Transaction, rng: &mut Rng) {
    let total = SHAPES.iter().map(|(weight, _)| weight).sum();
    let mut ticket = rng.below(total);
    for (weight, shape) in SHAPES {
        if ticket < *weight {
            return shape(transaction, rng);
        }
        ticket -= weight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(seed: u64) -> String {
        let mut rng = Rng::new(seed, 0);
        let choice = Choice {
            truncate: true,
            pgbench_scale: Some(1),
        };
        let mut all = String::new();
        for _ in 0..200 {
            let mut transaction = draw(&mut rng, choice);
            finish(&mut transaction, &mut rng);
            for step in transaction.steps {
                all.push_str(&step.sql);
                all.push_str(";\n");
            }
        }
        all
    }

    #[test]
    fn a_seed_gives_one_script() {
        assert_eq!(script(42), script(42));
        assert_ne!(script(42), script(43));
    }

    #[test]
    fn what_a_savepoint_takes_back_is_not_counted() {
        let mut rng = Rng::new(1, 0);
        let mut seen = 0;
        for _ in 0..2000 {
            let transaction = draw(
                &mut rng,
                Choice {
                    truncate: false,
                    pgbench_scale: None,
                },
            );
            let mut undone = false;
            for step in &transaction.steps {
                match step.sql.as_str() {
                    "SAVEPOINT undone" => undone = true,
                    "ROLLBACK TO SAVEPOINT undone" => undone = false,
                    _ if undone => {
                        seen += 1;
                        assert_eq!(step.effect, Effect::None, "{}", step.sql);
                    }
                    _ => {}
                }
            }
            assert!(!undone);
        }
        assert!(seen > 100);
    }
}
