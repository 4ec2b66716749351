//! "Did you mean": the known word nearest to a misspelt one.

/// Below this similarity (0 to 1) a guess would only confuse.
const SIMILAR: f64 = 0.7;

/// The word of `known` most similar to `word`, if any is similar at all.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(similarity, _)| *similarity > SIMILAR)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}
