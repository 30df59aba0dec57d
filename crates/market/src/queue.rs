//! Who waits for a node of a model, and who is next: a bounded queue with an age, fair between accounts (GR34), that
//! prefers those who pay without ever starving the others (GR36). Arguments in, value out.

use std::collections::VecDeque;
use std::time::Duration;

use cxmpute_wire::UserId;

/// How much a request is worth keeping when not all can be kept. The order of the variants is the order of worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// It pays.
    Paid,
    /// It costs nothing.
    Free,
}

/// Of so many turns, one begins with those who do not pay.
const FREE_TURN_EVERY: u64 = 5;

/// A place in the queue, for leaving it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place(u64);

/// What became of an offer to one who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// It took what was offered and is no longer waiting.
    Taken,
    /// It cannot use this; others may.
    Pass,
    /// It cannot use this, and neither can anybody behind it.
    Stop,
}

#[derive(Debug)]
struct Entry<T> {
    place: Place,
    since: Duration,
    item: T,
}

/// The entries of one account, oldest first.
#[derive(Debug)]
struct Line<T> {
    account: UserId,
    entries: VecDeque<Entry<T>>,
}

/// The queue of one model.
#[derive(Debug)]
pub struct FairQueue<T> {
    capacity: usize,
    age: Duration,
    next_place: u64,
    turns: u64,
    length: usize,
    /// By class; in each, the account whose turn is next comes first. No line is empty.
    lanes: [VecDeque<Line<T>>; 2],
}

/// A newcomer who got in.
#[derive(Debug)]
pub struct Joined<T> {
    /// Its place.
    pub place: Place,
    /// Who had waited too long anyway.
    pub late: Vec<T>,
    /// Who had to go for it: one of less worth, or of an account that had more waiting.
    pub displaced: Option<T>,
}

impl<T> FairQueue<T> {
    /// An empty queue of at most `capacity` entries that wait at most `age`.
    #[must_use]
    pub fn new(capacity: usize, age: Duration) -> Self {
        Self { capacity, age, next_place: 0, turns: 0, length: 0, lanes: [VecDeque::new(), VecDeque::new()] }
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether a request of this account would get in.
    #[must_use]
    pub fn admits(&self, account: &UserId, class: Class, now: Duration) -> bool {
        self.length < self.capacity
            || self
                .lanes
                .iter()
                .flatten()
                .flat_map(|line| line.entries.front())
                .any(|entry| self.is_old(entry, now))
            || self.who_yields(account, class).is_some()
    }

    /// Takes a newcomer in at the end of its account's line. When the queue is full, somebody of less worth goes, else
    /// the newest of the account with the most entries if the newcomer's account has fewer; so no account can keep the
    /// others out.
    ///
    /// # Errors
    /// The item, when nobody has to go for it.
    pub fn join(&mut self, account: &UserId, class: Class, item: T, now: Duration) -> Result<Joined<T>, T> {
        let (mut late, mut displaced) = (Vec::new(), None);
        if self.length >= self.capacity {
            late = self.expire(now);
        }
        if self.length >= self.capacity {
            let Some((lane, at)) = self.who_yields(account, class) else { return Err(item) };
            displaced = self.lanes[lane][at].entries.pop_back().map(|entry| entry.item);
            self.length -= 1;
            self.close_empty(lane);
        }
        let place = Place(self.next_place);
        self.next_place += 1;
        self.length += 1;
        let entry = Entry { place, since: now, item };
        let lane = &mut self.lanes[class as usize];
        match lane.iter_mut().find(|line| line.account == *account) {
            Some(line) => line.entries.push_back(entry),
            None => lane.push_back(Line { account: account.clone(), entries: [entry].into() }),
        }
        Ok(Joined { place, late, displaced })
    }

    /// Takes an entry out that does not want to wait any longer; `None` when it is not there any more.
    pub fn leave(&mut self, place: Place) -> Option<T> {
        for lane in 0..self.lanes.len() {
            for line in &mut self.lanes[lane] {
                if let Some(at) = line.entries.iter().position(|entry| entry.place == place) {
                    let entry = line.entries.remove(at);
                    self.length -= 1;
                    self.close_empty(lane);
                    return entry.map(|entry| entry.item);
                }
            }
        }
        None
    }

    /// Takes out who has waited longer than the age.
    pub fn expire(&mut self, now: Duration) -> Vec<T> {
        let mut old = Vec::new();
        for lane in 0..self.lanes.len() {
            for line in &mut self.lanes[lane] {
                // The oldest of a line stands first.
                while line.entries.front().is_some_and(|entry| now.saturating_sub(entry.since) > self.age) {
                    old.extend(line.entries.pop_front().map(|entry| entry.item));
                    self.length -= 1;
                }
            }
            self.close_empty(lane);
        }
        old
    }

    /// Offers something to those who wait, in the order of their turns, until one takes it. Gives who took it. Accounts
    /// take turns; within an account the oldest comes first.
    pub fn offer(&mut self, mut ask: impl FnMut(&T) -> Offer) -> Option<T> {
        let free_first = self.turns % FREE_TURN_EVERY == FREE_TURN_EVERY - 1;
        for lane in if free_first { [1, 0] } else { [0, 1] } {
            let longest = self.lanes[lane].iter().map(|line| line.entries.len()).max().unwrap_or(0);
            for depth in 0..longest {
                for at in 0..self.lanes[lane].len() {
                    let Some(entry) = self.lanes[lane][at].entries.get(depth) else { continue };
                    match ask(&entry.item) {
                        Offer::Taken => return self.take(lane, at, depth),
                        Offer::Pass => {}
                        Offer::Stop => return None,
                    }
                }
            }
        }
        None
    }

    fn take(&mut self, lane: usize, at: usize, depth: usize) -> Option<T> {
        self.turns = self.turns.wrapping_add(1);
        self.length -= 1;
        let mut line = self.lanes[lane].remove(at)?;
        let entry = line.entries.remove(depth);
        // Its account has had its turn.
        if !line.entries.is_empty() {
            self.lanes[lane].push_back(line);
        }
        entry.map(|entry| entry.item)
    }

    /// Whose newest entry goes for a newcomer: lane and position.
    fn who_yields(&self, account: &UserId, class: Class) -> Option<(usize, usize)> {
        let longest = |lane: usize| {
            let lines = self.lanes[lane].iter().enumerate();
            lines.map(|(at, line)| (line.entries.len(), at)).max_by_key(|(length, _)| *length)
        };
        let less =
            (class as usize + 1..self.lanes.len()).rev().find_map(|lane| Some((lane, longest(lane)?.1)));
        less.or_else(|| {
            let lane = class as usize;
            let own = self.lanes[lane].iter().find(|line| line.account == *account);
            let own = own.map_or(0, |line| line.entries.len());
            longest(lane).filter(|(length, _)| own + 1 < *length).map(|(_, at)| (lane, at))
        })
    }

    fn is_old(&self, entry: &Entry<T>, now: Duration) -> bool {
        now.saturating_sub(entry.since) > self.age
    }

    fn close_empty(&mut self, lane: usize) {
        self.lanes[lane].retain(|line| !line.entries.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const AGE: Duration = Duration::from_secs(2);

    fn account(n: u8) -> UserId {
        UserId::from_tail(&format!("a{n}"))
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn next<T>(queue: &mut FairQueue<T>) -> Option<T> {
        queue.offer(|_| Offer::Taken)
    }

    #[test]
    fn accounts_take_turns_however_much_one_of_them_asks() {
        let mut queue = FairQueue::new(100, AGE);
        for n in 0..10 {
            queue.join(&account(1), Class::Paid, (1, n), at(0)).unwrap();
        }
        queue.join(&account(2), Class::Paid, (2, 0), at(1)).unwrap();
        queue.join(&account(3), Class::Paid, (3, 0), at(1)).unwrap();
        let order: Vec<_> = std::iter::from_fn(|| next(&mut queue)).collect();
        assert_eq!(order[..4], [(1, 0), (2, 0), (3, 0), (1, 1)]);
        assert_eq!(order.len(), 12);
    }

    #[test]
    fn a_full_queue_yields_to_an_account_that_has_less_in_it() {
        let mut queue = FairQueue::new(4, AGE);
        for n in 0..4 {
            queue.join(&account(1), Class::Paid, (1, n), at(0)).unwrap();
        }
        assert!(!queue.admits(&account(1), Class::Paid, at(1)));
        assert_eq!(queue.join(&account(1), Class::Paid, (1, 9), at(1)).unwrap_err(), (1, 9));
        assert!(queue.admits(&account(2), Class::Paid, at(1)));
        assert_eq!(queue.join(&account(2), Class::Paid, (2, 0), at(1)).unwrap().displaced, Some((1, 3)));
        assert_eq!(queue.join(&account(2), Class::Paid, (2, 1), at(1)).unwrap().displaced, Some((1, 2)));
        assert!(queue.join(&account(2), Class::Paid, (2, 2), at(1)).is_err(), "both have as much now");
        assert_eq!(queue.len(), 4);
    }

    #[test]
    fn who_pays_takes_the_place_of_who_does_not_but_not_every_turn() {
        let mut queue = FairQueue::new(8, AGE);
        for n in 0..8 {
            queue.join(&account(1), Class::Free, n, at(0)).unwrap();
        }
        for n in 10..16 {
            assert!(queue.join(&account(2), Class::Paid, n, at(0)).unwrap().displaced.is_some());
        }
        assert!(!queue.admits(&account(1), Class::Free, at(0)));
        let order: Vec<_> = std::iter::from_fn(|| next(&mut queue)).collect();
        assert_eq!(order, [10, 11, 12, 13, 0, 14, 15, 1]);
    }

    #[test]
    fn the_oldest_go_when_their_age_is_over() {
        let mut queue = FairQueue::new(2, AGE);
        queue.join(&account(1), Class::Paid, 1, at(0)).unwrap();
        queue.join(&account(1), Class::Paid, 2, at(1_500)).unwrap();
        assert!(queue.admits(&account(1), Class::Paid, at(2_001)));
        let joined = queue.join(&account(1), Class::Paid, 3, at(2_001)).unwrap();
        assert_eq!((joined.late, joined.displaced), (vec![1], None), "nobody has to go for the newcomer");
        assert_eq!(queue.expire(at(3_501)), [2]);
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn one_that_cannot_use_an_offer_keeps_its_turn() {
        let mut queue = FairQueue::new(9, AGE);
        for n in 0..3 {
            queue.join(&account(n), Class::Paid, n, at(0)).unwrap();
        }
        assert_eq!(queue.offer(|n| if *n == 1 { Offer::Taken } else { Offer::Pass }), Some(1));
        assert_eq!(queue.offer(|_| Offer::Stop), None);
        assert_eq!(next(&mut queue), Some(0));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Join(u8, bool),
        Serve,
        Leave(usize),
        Expire,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..5, any::<bool>()).prop_map(|(who, free)| Step::Join(who, free)),
            2 => Just(Step::Serve),
            1 => (0usize..64).prop_map(Step::Leave),
            1 => Just(Step::Expire),
        ]
    }

    proptest! {
        /// Bounded, and nobody is lost or served twice: who joined is waiting, or left by exactly one door.
        #[test]
        fn everybody_is_somewhere_and_the_queue_stays_within_its_bound(
            steps in proptest::collection::vec((any_step(), 0u64..400), 1..200),
            capacity in 1usize..12,
        ) {
            let mut queue = FairQueue::new(capacity, AGE);
            let (mut now, mut serial) = (0, 0u32);
            let mut waiting: BTreeMap<u32, (Place, u64)> = BTreeMap::new();
            for (step, pause) in steps {
                now += pause;
                match step {
                    Step::Join(who, free) => {
                        let class = if free { Class::Free } else { Class::Paid };
                        let admits = queue.admits(&account(who), class, at(now));
                        match queue.join(&account(who), class, serial, at(now)) {
                            Ok(joined) => {
                                prop_assert!(admits);
                                for gone in joined.late.into_iter().chain(joined.displaced) { prop_assert!(waiting.remove(&gone).is_some()); }
                                waiting.insert(serial, (joined.place, now));
                            }
                            Err(item) => { prop_assert!(!admits); prop_assert_eq!(item, serial); }
                        }
                        serial += 1;
                    }
                    Step::Serve => match next(&mut queue) {
                        Some(item) => prop_assert!(waiting.remove(&item).is_some()),
                        None => prop_assert!(waiting.is_empty(), "an offer that anybody takes finds somebody"),
                    },
                    Step::Leave(which) => {
                        let found = waiting.iter().nth(which).map(|(item, (place, _))| (*item, *place));
                        if let Some((item, place)) = found {
                            prop_assert_eq!(queue.leave(place), Some(item));
                            prop_assert_eq!(queue.leave(place), None);
                            waiting.remove(&item);
                        }
                    }
                    Step::Expire => {
                        for item in queue.expire(at(now)) { prop_assert!(waiting.remove(&item).is_some()); }
                        prop_assert!(waiting.values().all(|(_, since)| now - since <= 2_000));
                    }
                }
                prop_assert_eq!(queue.len(), waiting.len());
                prop_assert!(queue.len() <= capacity);
            }
        }

        /// Fair: while two accounts of one class wait, neither is served twice before the other is served once.
        #[test]
        fn no_account_is_served_twice_while_another_waits(counts in proptest::collection::vec(1usize..20, 2..6)) {
            let mut queue = FairQueue::new(1_000, AGE);
            let mut left = counts.clone();
            for (who, count) in counts.iter().enumerate() {
                for _ in 0..*count { queue.join(&account(who as u8), Class::Paid, who, at(0)).unwrap(); }
            }
            let mut since: Vec<usize> = vec![0; counts.len()];
            while let Some(who) = next(&mut queue) {
                for (other, waits) in since.iter_mut().enumerate() {
                    if other != who && left[other] > 0 { *waits += 1; }
                    prop_assert!(*waits <= counts.len());
                }
                since[who] = 0;
                left[who] -= 1;
            }
            prop_assert!(left.iter().all(|count| *count == 0));
        }

        /// Nobody starves: the oldest of who does not pay is served within five turns, whatever the others send.
        #[test]
        fn who_does_not_pay_is_served_too(before in 0u64..50) {
            let mut queue = FairQueue::new(1_000, AGE);
            for n in 0..200 { queue.join(&account((n % 7) as u8), Class::Paid, false, at(0)).unwrap(); }
            for _ in 0..before { next(&mut queue); }
            queue.join(&account(9), Class::Free, true, at(0)).unwrap();
            let turns = (0..).take_while(|_| next(&mut queue) == Some(false)).count();
            prop_assert!(turns < FREE_TURN_EVERY as usize, "{} turns", turns);
        }
    }
}
