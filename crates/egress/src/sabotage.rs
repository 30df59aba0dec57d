//! The known-bad variants of the gates F1 to F4. Each names one promise and breaks it; a gate that does not notice is
//! no gate. Compiled only with the cargo feature `sabotage`.

/// One way to be wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// F1: only names are judged, where they are resolved; addresses written into the URL are not.
    ResolverOnlyGuard,
    /// F2: the addresses of one lookup are judged, those of a second one are used.
    SecondLookup,
    /// F3: redirects are followed as a common client follows them: unjudged, many, with all headers.
    OwnRedirects,
    /// F4: only the bytes on the wire are counted.
    NoDecodedCount,
}
