//! A line fitted to points in Rust, by Adam from libonepass, without a crate.
//!
//! It shows the few declarations that a program needs, and the codes as `Result`.
//!
//!     cmake -S onepass -B build -DONEPASS_LIBRARY=ON && cmake --build build && cmake --install build
//!     rustc -O fit.rs -L /usr/local/lib -l onepass
//!     ./fit                      prints the line
//!     ./fit steps.bin            writes each gradient, and last the weights
use std::ffi::{CStr, CString};
use std::os::raw::{c_char, c_void};
use std::ptr;

const F32: i32 = 1;
const MOST: usize = 64;

extern "C" {
    fn onepass_rule(name: *const c_char) -> i32;
    fn onepass_message(code: i32) -> *const c_char;
    fn onepass_defaults(rule: i32, settings: *mut f64) -> i32;
    fn onepass_set(rule: i32, settings: *mut f64, name: *const c_char, value: f64) -> i32;
    fn onepass_scalars(
        rule: i32,
        step: i64,
        settings: *const f64,
        memory: *const f64,
        scalars: *mut f64,
    ) -> i32;
    fn onepass_update(
        rule: i32,
        options: i32,
        format: i32,
        n: usize,
        param: *mut c_void,
        grad: *const c_void,
        state0: *mut c_void,
        state1: *mut c_void,
        state2: *mut c_void,
        state3: *mut c_void,
        scalars: *const f64,
        memory: *mut f64,
        threads: i32,
    ) -> i32;
}

fn check(code: i32) -> Result<(), String> {
    if code == 0 {
        return Ok(());
    }
    Err(unsafe { CStr::from_ptr(onepass_message(code)) }
        .to_string_lossy()
        .into_owned())
}

/// Adam over one vector of weights.
struct Adam {
    rule: i32,
    settings: [f64; MOST],
    state: [Vec<f32>; 2],
    steps: i64,
}

impl Adam {
    fn new(n: usize, lr: f64) -> Result<Self, String> {
        let (name, lr_name) = (CString::new("adam").unwrap(), CString::new("lr").unwrap());
        let mut settings = [0.0; MOST];
        let rule = unsafe { onepass_rule(name.as_ptr()) };
        check(unsafe { onepass_defaults(rule, settings.as_mut_ptr()) })?;
        check(unsafe { onepass_set(rule, settings.as_mut_ptr(), lr_name.as_ptr(), lr) })?;
        Ok(Adam {
            rule,
            settings,
            state: [vec![0.0; n], vec![0.0; n]],
            steps: 0,
        })
    }

    fn step(&mut self, param: &mut [f32], grad: &[f32]) -> Result<(), String> {
        assert!(param.len() == grad.len() && param.len() == self.state[0].len());
        let mut scalars = [0.0; MOST];
        let [first, second] = &mut self.state;
        check(unsafe {
            onepass_scalars(
                self.rule,
                self.steps + 1,
                self.settings.as_ptr(),
                ptr::null(),
                scalars.as_mut_ptr(),
            )
        })?;
        check(unsafe {
            onepass_update(
                self.rule,
                0,
                F32,
                param.len(),
                param.as_mut_ptr().cast(),
                grad.as_ptr().cast(),
                first.as_mut_ptr().cast(),
                second.as_mut_ptr().cast(),
                ptr::null_mut(),
                ptr::null_mut(),
                scalars.as_ptr(),
                ptr::null_mut(),
                0,
            )
        })?;
        self.steps += 1;
        Ok(())
    }
}

fn main() -> Result<(), String> {
    // Points near y = 3 x - 1.
    let points: Vec<(f32, f32)> = (0..100)
        .map(|i| (i as f32 / 50.0 - 1.0, (i * 37 % 11) as f32 / 50.0 - 0.1))
        .map(|(x, off)| (x, 3.0 * x - 1.0 + off))
        .collect();
    let mut weights = vec![0.0_f32; 2];
    let mut adam = Adam::new(weights.len(), 0.05)?;
    let mut record: Vec<u8> = Vec::new();
    for _ in 0..400 {
        let mut grad = vec![0.0_f32; 2];
        for (x, y) in &points {
            let error = (weights[0] * x + weights[1] - y) / points.len() as f32;
            grad[0] += error * x;
            grad[1] += error;
        }
        record.extend(grad.iter().flat_map(|g| g.to_ne_bytes()));
        adam.step(&mut weights, &grad)?;
    }
    record.extend(weights.iter().flat_map(|w| w.to_ne_bytes()));
    println!("y = {:.2} x + {:.2}", weights[0], weights[1]);
    if let Some(path) = std::env::args().nth(1) {
        std::fs::write(path, record).map_err(|error| error.to_string())?;
    }
    Ok(())
}
