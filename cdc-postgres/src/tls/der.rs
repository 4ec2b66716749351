//! The little DER that is needed of an X.509 certificate (RFC 5280 §4.1): its signature algorithm and its public key.

/// ASN.1 `SEQUENCE`.
const SEQUENCE: u8 = 0x30;
/// ASN.1 `OBJECT IDENTIFIER`.
pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
/// Context-specific constructed tag 0.
pub(super) const CONTEXT_0: u8 = 0xA0;

/// One element.
#[derive(Clone, Copy)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    /// The element without its header.
    pub(super) content: &'a [u8],
    /// The element with its header.
    pub(super) whole: &'a [u8],
}

/// The elements that follow each other in `input`; ends at the first that is malformed.
#[derive(Clone)]
pub(super) struct Elements<'a>(pub(super) &'a [u8]);

impl<'a> Elements<'a> {
    /// The next element if it has this tag.
    pub(super) fn expect(&mut self, tag: u8) -> Option<Element<'a>> {
        self.next().filter(|element| element.tag == tag)
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Element<'a>;

    fn next(&mut self) -> Option<Element<'a>> {
        let input = self.0;
        let (&tag, rest) = input.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            // Long form: up to four bytes of length are more than any certificate has.
            let count = usize::from(first & 0x7F);
            if count == 0 || count > 4 {
                return None;
            }
            let (digits, rest) = rest.split_at_checked(count)?;
            (
                digits
                    .iter()
                    .fold(0usize, |sum, digit| (sum << 8) | usize::from(*digit)),
                rest,
            )
        };
        let (content, after) = rest.split_at_checked(length)?;
        let whole = input.get(..input.len() - after.len())?;
        self.0 = after;
        Some(Element { tag, content, whole })
    }
}

/// The content of the certificate's `signatureAlgorithm`: the identifier and its parameters.
pub(super) fn signature_algorithm(certificate: &[u8]) -> Option<Elements<'_>> {
    let mut parts = Elements(Elements(certificate).expect(SEQUENCE)?.content);
    parts.expect(SEQUENCE)?;
    Some(Elements(parts.expect(SEQUENCE)?.content))
}

/// The certificate's `subjectPublicKeyInfo`, header included.
pub(super) fn public_key(certificate: &[u8]) -> Option<&[u8]> {
    let mut parts = Elements(Elements(certificate).expect(SEQUENCE)?.content);
    let mut fields = Elements(parts.expect(SEQUENCE)?.content);
    let first = fields.next()?;
    // A version-1 certificate has no version field: then the first is the serial number already.
    if first.tag == CONTEXT_0 {
        fields.next()?;
    }
    // signature, issuer, validity, subject
    for _ in 0..4 {
        fields.expect(SEQUENCE)?;
    }
    Some(fields.expect(SEQUENCE)?.whole)
}

/// The content of the first element of a `SEQUENCE` that stands alone in `input`.
pub(super) fn first_in_sequence(input: &[u8]) -> Option<Element<'_>> {
    Elements(Elements(input).expect(SEQUENCE)?.content).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_split_by_both_length_forms() {
        let mut input = vec![0x30, 0x02, 1, 2, 0x04, 0x81, 0x80];
        input.extend([7; 128]);
        let found: Vec<(u8, usize, usize)> = Elements(&input)
            .map(|e| (e.tag, e.content.len(), e.whole.len()))
            .collect();
        assert_eq!(found, [(0x30, 2, 4), (0x04, 128, 131)]);
    }

    #[test]
    fn malformed_input_ends_the_iteration() {
        for input in [
            &[][..],
            &[0x30],
            &[0x30, 0x02, 1],
            &[0x30, 0x80],
            &[0x30, 0x85, 1, 1, 1, 1, 1],
            &[0x30, 0x84, 0xFF, 0xFF, 0xFF, 0xFF],
            &[0x30, 0x82, 1],
        ] {
            assert_eq!(Elements(input).count(), 0, "{input:?}");
            assert!(signature_algorithm(input).is_none() && public_key(input).is_none());
        }
    }
}
