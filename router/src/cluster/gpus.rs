//! Which local worker computes on which GPU, and how much of its memory it may take.

/// A worker's part of a GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuShare {
    /// Number of the device, as CUDA counts those that it shows.
    pub device: u32,
    /// Share of its memory for weights, graphs and KV together.
    pub memory: f64,
}

/// The parts of so many workers, in their order: devices in turn, and those on one device get
/// equal parts of `utilization`. Without a GPU there is nothing to share.
pub fn gpu_shares(workers: u32, gpus: u32, utilization: f64) -> Vec<GpuShare> {
    if gpus == 0 {
        return Vec::new();
    }
    let share = |worker: u32| {
        let device = worker % gpus;
        // Workers `device`, `device + gpus`, and so on.
        let others = (workers - device).div_ceil(gpus);
        GpuShare {
            device,
            memory: utilization / f64::from(others),
        }
    };
    (0..workers).map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(workers: u32, gpus: u32) -> Vec<(u32, f64)> {
        let shares = gpu_shares(workers, gpus, 0.9);
        shares.iter().map(|one| (one.device, one.memory)).collect()
    }

    #[test]
    fn devices_go_round_and_those_on_one_share_it() {
        assert_eq!(told(2, 1), [(0, 0.45), (0, 0.45)]);
        assert_eq!(told(2, 2), [(0, 0.9), (1, 0.9)]);
        assert_eq!(told(1, 4), [(0, 0.9)]);
        assert_eq!(told(3, 2), [(0, 0.45), (1, 0.9), (0, 0.45)]);
        assert_eq!(told(3, 0), []);
    }

    #[test]
    fn nobody_gets_more_than_there_is() {
        for workers in 1..20 {
            for gpus in 1..9 {
                let mut taken = vec![0.0; gpus as usize];
                for one in gpu_shares(workers, gpus, 0.9) {
                    taken[one.device as usize] += one.memory;
                }
                let used = taken.iter().filter(|&&sum| sum > 0.0);
                assert!(used.clone().all(|sum| (sum - 0.9_f64).abs() < 1e-9));
                assert_eq!(used.count(), workers.min(gpus) as usize);
            }
        }
    }
}
