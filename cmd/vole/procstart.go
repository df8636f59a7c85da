package main

import (
	"bytes"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// userHZ is the unit of the times in /proc/PID/stat, which is the same on every x86-64 kernel.
const userHZ = 100

// atMain is when this package was initialised, and how much CPU time the process had used by then.
var (
	atMain  = time.Now()
	cpuMain = processCPU()
)

// processStart is when this process began, to a millisecond or so.
//
// The kernel tells the start in steps of 10 ms. Up to main a Go process does nothing but compute on
// one thread, so the CPU time it had used by then is a better measure of its age, as long as the
// step that the kernel tells agrees with it.
func processStart() time.Time {
	age := cpuMain
	if coarse, ok := processAge(); ok {
		coarse -= time.Since(atMain)
		const step = time.Second / userHZ
		age = min(max(age, coarse-step), max(coarse, 0))
	}
	return atMain.Add(-age)
}

// processAge is the age of this process as the kernel tells it, up to 10 ms too long.
func processAge() (time.Duration, bool) {
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0, false
	}
	ticks, ok := statField(b, 22) // starttime
	if !ok {
		return 0, false
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, false
	}
	return time.Duration(now.Nano()) - time.Duration(ticks)*(time.Second/userHZ), true
}

// statField reads a number, from the third on, of a line that proc_pid_stat(5) numbers from 1. The
// name in field 2 may hold anything, brackets and spaces too.
func statField(stat []byte, field int) (int64, bool) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, false
	}
	fields := bytes.Fields(stat[end+1:])
	i := field - 3
	if i < 0 || i >= len(fields) {
		return 0, false
	}
	n, err := strconv.ParseInt(string(fields[i]), 10, 64)
	return n, err == nil
}

func processCPU() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
