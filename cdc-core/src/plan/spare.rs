//! The vectors of a plan that was applied, emptied, for the next plan: a stream in full flow makes thousands of plans a
//! second, and would allocate each of them anew.

use super::types::{NetTable, OrderedRow, Step, UpdateSet};

/// Rows that all of them together have room for; more is given back, so that one huge group does not pin memory.
pub(super) const RETAINED_ROWS: usize = 1 << 17;

/// Empty vectors, those used last at the end.
#[derive(Debug, Clone, Default)]
pub(super) struct Spare {
    nets: Vec<NetTable>,
    updates: Vec<UpdateSet>,
    ordered: Vec<Vec<OrderedRow>>,
}

impl Spare {
    /// An empty net table for the plan's table of this number.
    pub(super) fn net(&mut self, table: usize) -> NetTable {
        let net = self.nets.pop().unwrap_or_default();
        NetTable { table, ..net }
    }

    /// An empty set of updates.
    pub(super) fn updates(&mut self) -> UpdateSet {
        self.updates.pop().unwrap_or_default()
    }

    /// An empty list of ordered rows.
    pub(super) fn ordered(&mut self) -> Vec<OrderedRow> {
        self.ordered.pop().unwrap_or_default()
    }

    /// Takes the steps of a plan apart, the last first: where the next plan has the same tables, each finds the vectors
    /// that had room enough for it.
    pub(super) fn take_apart(&mut self, steps: &mut Vec<Step>) {
        for step in steps.drain(..).rev() {
            match step {
                Step::Net(net) => self.keep(net),
                Step::Ordered(mut rows) => {
                    rows.clear();
                    self.ordered.push(rows);
                }
                Step::Truncate { .. } => {}
            }
        }
        let mut room = RETAINED_ROWS;
        fit(&mut self.nets, &mut room, |net| {
            let images = [&net.deletes, &net.deletes_if_present, &net.inserts, &net.upserts];
            images.map(Vec::capacity).iter().sum()
        });
        fit(&mut self.updates, &mut room, |set| set.rows.capacity());
        fit(&mut self.ordered, &mut room, Vec::capacity);
    }

    /// Empties a net table and keeps it.
    pub(super) fn keep(&mut self, mut net: NetTable) {
        for mut set in net.updates.drain(..).rev() {
            set.columns.clear();
            set.rows.clear();
            self.updates.push(set);
        }
        net.deletes.clear();
        net.deletes_if_present.clear();
        net.inserts.clear();
        net.upserts.clear();
        self.nets.push(net);
    }
}

/// Drops what was used longest ago until the rest takes no more than `room`.
fn fit<T>(spare: &mut Vec<T>, room: &mut usize, rows: impl Fn(&T) -> usize) {
    let fitting = spare.iter().rev().take_while(|one| {
        // One row more, because there may be any number of empty ones.
        let left = room.checked_sub(rows(one) + 1);
        *room = left.unwrap_or(*room);
        left.is_some()
    });
    let dropped = spare.len() - fitting.count();
    spare.drain(..dropped);
}

#[cfg(test)]
mod tests {
    use super::super::types::{Image, RowRef};
    use super::*;

    fn inserts(rows: usize) -> Step {
        let row = Image::After(RowRef { piece: 0, row: 0 });
        Step::Net(NetTable {
            table: 7,
            inserts: vec![row; rows],
            ..NetTable::default()
        })
    }

    #[test]
    fn what_is_given_out_again_is_empty() {
        let row = RowRef { piece: 1, row: 2 };
        let image = Image::After(row);
        let mut steps = vec![
            Step::Net(NetTable {
                table: 1,
                deletes: vec![image],
                deletes_if_present: vec![image],
                updates: vec![UpdateSet {
                    columns: vec![3],
                    rows: vec![(image, image)],
                }],
                inserts: vec![image],
                upserts: vec![image],
            }),
            Step::Ordered(vec![OrderedRow { table: 1, row }]),
        ];
        let mut spare = Spare::default();
        spare.take_apart(&mut steps);
        assert!(steps.is_empty());
        let (net, updates, ordered) = (spare.net(4), spare.updates(), spare.ordered());
        assert!(net.inserts.capacity() > 0 && updates.rows.capacity() > 0 && ordered.capacity() > 0);
        let empty = NetTable {
            table: 4,
            ..NetTable::default()
        };
        assert_eq!((net, updates, ordered), (empty, UpdateSet::default(), Vec::new()));
    }

    #[test]
    fn tables_in_the_same_order_find_their_own_vectors() {
        let mut spare = Spare::default();
        spare.take_apart(&mut vec![inserts(5), inserts(100)]);
        let rooms = [spare.net(0), spare.net(1)].map(|net| net.inserts.capacity());
        assert_eq!(rooms, [5, 100]);
    }

    #[test]
    fn a_huge_group_pins_no_memory() {
        let mut spare = Spare::default();
        let rooms =
            |spare: &Spare| -> Vec<usize> { spare.nets.iter().map(|net| net.inserts.capacity()).collect() };
        spare.take_apart(&mut vec![inserts(RETAINED_ROWS)]);
        assert_eq!(rooms(&spare), []);
        // What was used before goes first.
        spare.take_apart(&mut vec![inserts(RETAINED_ROWS / 2)]);
        spare.take_apart(&mut vec![inserts(RETAINED_ROWS / 2), inserts(10)]);
        assert_eq!(rooms(&spare), [10, RETAINED_ROWS / 2]);
        spare.take_apart(&mut (0..2 * RETAINED_ROWS).map(|_| inserts(0)).collect());
        assert_eq!(spare.nets.len(), RETAINED_ROWS);
    }
}
