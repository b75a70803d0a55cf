//! Use of replicas that start, run, leave and give no sample.
