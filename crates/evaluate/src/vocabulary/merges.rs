//! Pieces of words, joined pair by pair (Sennrich et al., 2016, arXiv:1508.07909).
//!
//! The trainer of `tokenizers` goes over words in the order of a hash map, so that ids and ties
//! differ from run to run; here words stand in their order and ties go to the older pieces.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

use crate::Progress;

/// Letters of a word; longer ones are unknown.
pub(super) const LETTERS_MAX: usize = 100;
/// Letters that have tokens: those that come most often.
const ALPHABET_MAX: usize = 1000;
/// What stands before a piece that does not begin a word.
const CONTINUING: &str = "##";

type Pair = (u32, u32);

pub(super) struct Pieces {
    /// In order of id, special tokens apart.
    pub(super) tokens: Vec<String>,
    /// Words of the texts with a letter that has no token.
    pub(super) unknown_count: u64,
    ids: HashMap<String, u32>,
    words: Vec<(Vec<u32>, u64)>,
    pairs: HashMap<Pair, Found>,
}

/// Where a pair of pieces comes.
#[derive(Default)]
struct Found {
    count: u64,
    /// Words that hold it, or did.
    words: BTreeSet<usize>,
}

impl Pieces {
    /// Every word in its letters.
    pub(super) fn new(counts: &BTreeMap<String, u64>) -> Self {
        let mut letters: BTreeMap<char, u64> = BTreeMap::new();
        for (word, count) in counts {
            word.chars().for_each(|letter| *letters.entry(letter).or_default() += count);
        }
        let mut kept: Vec<(char, u64)> = letters.into_iter().collect();
        kept.sort_by_key(|&(letter, count)| (Reverse(count), letter));
        kept.truncate(ALPHABET_MAX);
        let alphabet: BTreeSet<char> = kept.into_iter().map(|(letter, _)| letter).collect();
        let mut pieces = Self {
            tokens: Vec::new(),
            unknown_count: 0,
            ids: HashMap::new(),
            words: Vec::new(),
            pairs: HashMap::new(),
        };
        // A letter has a token in the middle of words only where it comes there.
        let mut middles = BTreeSet::new();
        let is_known = |word: &str| {
            word.chars().all(|letter| alphabet.contains(&letter))
                && word.chars().count() <= LETTERS_MAX
        };
        for word in counts.keys().filter(|word| is_known(word)) {
            middles.extend(word.chars().skip(1));
        }
        alphabet.iter().for_each(|letter| pieces.add(letter.to_string()));
        middles.iter().for_each(|letter| pieces.add(format!("{CONTINUING}{letter}")));
        for (word, &count) in counts {
            if is_known(word) {
                pieces.add_word(word, count);
            } else {
                pieces.unknown_count += count;
            }
        }
        pieces
    }

    pub(super) fn token_count(&self) -> usize {
        self.tokens.len()
    }

    fn add(&mut self, token: String) {
        self.ids.insert(token.clone(), self.tokens.len() as u32);
        self.tokens.push(token);
    }

    fn add_word(&mut self, word: &str, count: u64) {
        let letters = word.chars().enumerate();
        let id = |(index, letter): (usize, char)| match index {
            0 => self.ids[&letter.to_string()],
            _ => self.ids[&format!("{CONTINUING}{letter}")],
        };
        let symbols: Vec<u32> = letters.map(id).collect();
        let index = self.words.len();
        for pair in symbols.windows(2) {
            let found = self.pairs.entry((pair[0], pair[1])).or_default();
            found.count += count;
            found.words.insert(index);
        }
        self.words.push((symbols, count));
    }

    /// Joins the pair that comes most often, again and again, until there are `room` tokens or no
    /// pair comes `count_min` times.
    pub(super) fn merge(&mut self, room: usize, count_min: u64, progress: &dyn Progress) {
        let entry = |(&pair, found): (&Pair, &Found)| (found.count, Reverse(pair));
        // The order in which a heap is filled does not show.
        #[allow(clippy::iter_over_hash_type)]
        let mut heap: BinaryHeap<(u64, Reverse<Pair>)> = self.pairs.iter().map(entry).collect();
        while self.tokens.len() < room
            && let Some((count, Reverse(pair))) = heap.pop()
        {
            let now = self.pairs.get(&pair).map_or(0, |found| found.count);
            if now != count {
                // It has become rarer since; if it became more frequent, that entry came before.
                if now > 0 && now < count {
                    heap.push((now, Reverse(pair)));
                }
                continue;
            }
            if count < count_min {
                break;
            }
            progress.advance("joining pieces", self.tokens.len(), room);
            for changed in self.join(pair) {
                let count = self.pairs.get(&changed).map_or(0, |found| found.count);
                if count > 0 {
                    heap.push((count, Reverse(changed)));
                }
            }
        }
        progress.advance("joining pieces", room, room);
    }

    /// Makes one token of a pair, in all words; gives the pairs that came about.
    fn join(&mut self, pair: Pair) -> BTreeSet<Pair> {
        let second = &self.tokens[pair.1 as usize];
        let second = second.strip_prefix(CONTINUING).unwrap_or(second);
        let token = format!("{}{second}", self.tokens[pair.0 as usize]);
        // Two ways of joining may give the same token.
        if !self.ids.contains_key(&token) {
            self.add(token.clone());
        }
        let joined = self.ids[&token];
        let mut changed = BTreeSet::new();
        let holders = self.pairs.remove(&pair).map_or_else(BTreeSet::new, |found| found.words);
        for index in holders {
            let (symbols, count) = &self.words[index];
            let (mut after, mut at) = (Vec::with_capacity(symbols.len()), 0);
            while at < symbols.len() {
                let is_pair = symbols.get(at..at + 2) == Some(&[pair.0, pair.1]);
                after.push(if is_pair { joined } else { symbols[at] });
                at += if is_pair { 2 } else { 1 };
            }
            for old in symbols.windows(2) {
                if let Some(found) = self.pairs.get_mut(&(old[0], old[1])) {
                    found.count -= count;
                }
            }
            for new in after.windows(2) {
                let found = self.pairs.entry((new[0], new[1])).or_default();
                found.count += count;
                found.words.insert(index);
                changed.insert((new[0], new[1]));
            }
            self.words[index].0 = after;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;

    #[test]
    fn the_pairs_of_the_paper_are_joined_in_its_order() {
        // Sennrich et al.'s example without the end of words: es, est, lo, low …
        let words = [("low", 5), ("lower", 2), ("newest", 6), ("widest", 3)];
        let counts = words.map(|(word, count)| (word.to_string(), count)).into_iter().collect();
        let mut pieces = Pieces::new(&counts);
        let letters = pieces.token_count();
        pieces.merge(letters + 6, 1, &Silent);
        assert_eq!(pieces.tokens[letters..], ["##es", "##est", "lo", "low", "ne", "##west"]);
    }

    #[test]
    fn rare_pairs_are_left_apart() {
        let counts = [("ab".to_string(), 3), ("cd".to_string(), 2)].into_iter().collect();
        let mut pieces = Pieces::new(&counts);
        let letters = pieces.token_count();
        pieces.merge(100, 3, &Silent);
        assert_eq!(pieces.tokens[letters..], ["ab"]);
    }

    #[test]
    fn a_pair_that_overlaps_itself_is_counted_as_it_stands() {
        let counts = [("aaaaa".to_string(), 1)].into_iter().collect();
        let mut pieces = Pieces::new(&counts);
        pieces.merge(100, 1, &Silent);
        assert!(pieces.tokens.contains(&"aaaaa".to_string()), "{:?}", pieces.tokens);
    }
}
