package kvm

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Guests that exit for ever; testdata/payload/cexit.c has the same bytes.
var (
	portLoop = []byte{
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xee,       // out dx, al
		0xeb, 0xfd, // jmp -3
	}
	mmioLoop = []byte{
		0xa2, 0x10, 0x00, // mov [0x10], al
		0xeb, 0xfb, // jmp -5
	}
)

// BenchmarkPortExit is the way from the guest's OUT to Go and back, with the
// decoding. cpu-ns/op is the processor time of this thread, which a busy machine
// does not change much. Where gcc is, the same loop in C runs beside it: c-ns/op
// and c-cpu-ns/op, and ratio, which is our processor time by C's.
func BenchmarkPortExit(b *testing.B) {
	m := newMachine(b, realMode, portLoop)
	b.ReportAllocs()
	var sum byte
	start := threadTime(b)
	for b.Loop() {
		r, err := m.cpu.Run()
		if err != nil {
			b.Fatal(err)
		}
		if r == ReasonIO {
			_, _, _, _, data := m.cpu.IO()
			sum += data[0]
		}
	}
	comparePeer(b, "port", threadTime(b)-start)
}

// BenchmarkMMIOExit is BenchmarkPortExit for a write to an address without memory.
func BenchmarkMMIOExit(b *testing.B) {
	m := newMachine(b, realMode, mmioLoop)
	b.ReportAllocs()
	var sum byte
	start := threadTime(b)
	for b.Loop() {
		r, err := m.cpu.Run()
		if err != nil {
			b.Fatal(err)
		}
		if r == ReasonMMIO {
			_, _, data := m.cpu.MMIO()
			sum += data[0]
		}
	}
	comparePeer(b, "mmio", threadTime(b)-start)
}

// threadTime is the processor time of the calling thread in nanoseconds.
func threadTime(b *testing.B) int64 {
	b.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		b.Fatal(err)
	}
	return ts.Nano()
}

// comparePeer reports the benchmark's processor time, and what the C loop takes
// for an exit now.
func comparePeer(b *testing.B, kind string, cpu int64) {
	b.Helper()
	b.StopTimer()
	own := float64(cpu) / float64(b.N)
	b.ReportMetric(own, "cpu-ns/op")
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		b.Log("no C peer: ", err)
		return
	}
	bin := filepath.Join(b.TempDir(), "cexit")
	if out, err := exec.Command(gcc, "-O2", "-Wall", "-o", bin, "../testdata/payload/cexit.c").CombinedOutput(); err != nil {
		b.Logf("no C peer: %v\n%s", err, out)
		return
	}
	out, err := exec.Command(bin, kind, "50000").Output()
	if err != nil {
		b.Fatalf("the C peer failed: %v", err)
	}
	var peer, peerCPU float64
	if _, err := fmt.Sscan(string(out), &peer, &peerCPU); err != nil {
		b.Fatalf("the C peer printed %q: %v", out, err)
	}
	b.ReportMetric(peer, "c-ns/op")
	b.ReportMetric(peerCPU, "c-cpu-ns/op")
	b.ReportMetric(own/peerCPU, "ratio")
}

// BenchmarkCreate is a machine from CREATE_VM to a vCPU and its end.
func BenchmarkCreate(b *testing.B) {
	for _, bb := range []struct {
		name    string
		irqchip bool
	}{{"bare", false}, {"irqchip", true}} {
		b.Run(bb.name, func(b *testing.B) {
			sys := openKVM(b)
			mem := guestRAM(b, testRAM)
			b.ReportAllocs()
			for b.Loop() {
				vm, err := sys.CreateVM()
				if err != nil {
					b.Fatal(err)
				}
				if err := vm.SetMemoryRegion(MemoryRegion{Size: testRAM, HVA: AddressOf(mem)}); err != nil {
					b.Fatal(err)
				}
				if bb.irqchip {
					if err := vm.CreateIRQChip(); err != nil {
						b.Fatal(err)
					}
				}
				cpu, err := vm.CreateVCPU(0)
				if err != nil {
					b.Fatal(err)
				}
				if err := cpu.Close(); err != nil {
					b.Fatal(err)
				}
				if err := vm.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
