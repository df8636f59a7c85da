package kvm

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
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
// decoding. Where gcc is, the same loop in C runs beside it: c-ns/op, and ratio,
// which is ours by C's.
func BenchmarkPortExit(b *testing.B) {
	m := newMachine(b, realMode, portLoop)
	b.ReportAllocs()
	var sum byte
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
	comparePeer(b, "port")
}

// BenchmarkMMIOExit is BenchmarkPortExit for a write to an address without memory.
func BenchmarkMMIOExit(b *testing.B) {
	m := newMachine(b, realMode, mmioLoop)
	b.ReportAllocs()
	var sum byte
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
	comparePeer(b, "mmio")
}

// comparePeer reports the C loop's nanoseconds an exit, measured now, and the
// ratio of the benchmark's own to them.
func comparePeer(b *testing.B, kind string) {
	b.Helper()
	b.StopTimer()
	own := float64(b.Elapsed().Nanoseconds()) / float64(b.N)
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
	ns, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(ns, "c-ns/op")
	b.ReportMetric(own/ns, "ratio")
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
