//! Circles among dependencies.

/// One circle, when there is one: each waits for the next, the last for the first.
pub(crate) fn circle(depends_on: &[&[usize]]) -> Option<Vec<usize>> {
    let mut waits: Vec<usize> = depends_on.iter().map(|others| others.len()).collect();
    let mut waited: Vec<Vec<usize>> = vec![Vec::new(); depends_on.len()];
    for (index, others) in depends_on.iter().enumerate() {
        others.iter().for_each(|other| waited[*other].push(index));
    }
    let mut ready: Vec<usize> = (0..waits.len()).filter(|index| waits[*index] == 0).collect();
    while let Some(done) = ready.pop() {
        for waiter in &waited[done] {
            waits[*waiter] -= 1;
            if waits[*waiter] == 0 {
                ready.push(*waiter);
            }
        }
    }
    // whoever still waits, waits for another who still waits: following them must come back
    let mut trail = vec![waits.iter().position(|left| *left > 0)?];
    loop {
        let last = *trail.last()?;
        let next = *depends_on[last].iter().find(|other| waits[**other] > 0)?;
        if let Some(at) = trail.iter().position(|index| *index == next) {
            return Some(trail.split_off(at));
        }
        trail.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::circle;

    #[test]
    fn circles_are_found() {
        assert_eq!(circle(&[&[], &[0], &[0, 1]]), None);
        assert_eq!(circle(&[&[], &[0, 3], &[1], &[2], &[3]]), Some(vec![1, 3, 2]));
        assert_eq!(circle(&[&[0]]), Some(vec![0]));
    }
}
