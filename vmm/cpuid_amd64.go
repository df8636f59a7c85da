package vmm

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/vole-vmm/vole/kvm"
)

// CPUID leaves that are changed, by the names of the Intel SDM (volume 2,
// CPUID) and the AMD APM (volume 3, appendix E).
const (
	leafFeatures     = 0x1
	leafCaches       = 0x4
	leafThermal      = 0x6
	leafStructured   = 0x7
	leafPMU          = 0xa
	leafTopology     = 0xb
	leafXSAVE        = 0xd
	leafSGX          = 0x12
	leafTrace        = 0x14
	leafTile         = 0x1d
	leafTMUL         = 0x1e
	leafTopologyV2   = 0x1f
	leafKVM          = 0x4000_0000
	leafKVMFeatures  = 0x4000_0001
	leafTiming       = 0x4000_0010
	leafExtended     = 0x8000_0000
	leafExtFeatures  = 0x8000_0001
	leafAddressSizes = 0x8000_0008
	leafSVM          = 0x8000_000a
	leafIBS          = 0x8000_001b
	leafLWP          = 0x8000_001c
	leafAMDCaches    = 0x8000_001d
	leafAMDTopology  = 0x8000_001e
	leafSEV          = 0x8000_001f
	leafPerfMonV2    = 0x8000_0022
	leafAMDTopoV2    = 0x8000_0026
)

// Bits of leaf 1.
const (
	ecxDTES64      = 1 << 2
	ecxMonitor     = 1 << 3
	ecxDSCPL       = 1 << 4
	ecxVMX         = 1 << 5
	ecxSMX         = 1 << 6
	ecxEST         = 1 << 7
	ecxTM2         = 1 << 8
	ecxSDBG        = 1 << 11
	ecxPDCM        = 1 << 15
	ecxX2APIC      = 1 << 21
	ecxTSCDeadline = 1 << 24
	ecxXSAVE       = 1 << 26
	ecxOSXSAVE     = 1 << 27
	ecxHypervisor  = 1 << 31

	edxMTRR = 1 << 12
	edxDS   = 1 << 21
	edxACPI = 1 << 22
	edxHTT  = 1 << 28
	edxTM   = 1 << 29
	edxPBE  = 1 << 31
)

// Bits of leaf 0x80000001.
const (
	extCmpLegacy   = 1 << 1
	extSVM         = 1 << 2
	extIBS         = 1 << 10
	extSKINIT      = 1 << 12
	extWDT         = 1 << 13
	extLWP         = 1 << 15
	extPerfCtrCore = 1 << 23
	extPerfCtrNB   = 1 << 24
	extPerfCtrLLC  = 1 << 28
)

// edxAMX are AMX's bits of leaf 7: bfloat16, tiles, 8-bit integers.
const edxAMX = 1<<22 | 1<<24 | 1<<25

// State components of leaf 0xd (Intel SDM volume 1, section 13.1) of which a
// part alone is no XCR0 that a processor takes.
const (
	xsaveMPX    = 1<<3 | 1<<4
	xsaveAVX    = 1 << 2
	xsaveAVX512 = 1<<5 | 1<<6 | 1<<7
	xsaveAMX    = 1<<17 | 1<<18
)

// topologyLevel types of leaf 0xb, in ECX bits 15 to 8.
const (
	levelSMT  = 1
	levelCore = 2
)

// hostCPU is what the guest's CPUID is made from: what KVM can virtualise, and
// what it does not say of itself.
type hostCPU struct {
	supported   []kvm.CPUIDEntry
	tscDeadline bool
	tscKHz      int // 0 if unknown
}

// guestCPUID returns the CPUID of vCPU id of n. The guest sees the host's
// processor less what needs a counterpart that this machine lacks (VMX, SVM,
// the PMU, thermal and power control), as one socket of n cores with one
// thread each; APIC ids are the vCPUs' numbers.
func guestCPUID(h hostCPU, id, n int) []kvm.CPUIDEntry {
	t := topology{id: uint32(id), n: uint32(n)}
	out := make([]kvm.CPUIDEntry, 0, len(h.supported)+2)
	var xsave []kvm.CPUIDEntry
	amd := h.isAMD()
	for _, e := range h.supported {
		switch e.Function {
		case leafXSAVE:
			xsave = append(xsave, e)
			continue
		case leafTile, leafTMUL:
			if !h.hasAMX() {
				continue
			}
		case leafTopology, leafTopologyV2, leafTiming:
			continue // made anew below
		}
		h.adapt(&e, t)
		if !amd {
			keepReserved(&e)
		}
		out = append(out, e)
	}
	if h.has(leafFeatures, func(e kvm.CPUIDEntry) bool { return e.ECX&ecxXSAVE != 0 }) {
		out = append(out, consistentXSAVE(xsave)...)
	}
	if maxLeaf(out, 0) >= leafTopology {
		out = append(out, t.leaf(leafTopology)...)
	}
	if slices.ContainsFunc(h.supported, func(e kvm.CPUIDEntry) bool { return e.Function == leafTopologyV2 }) {
		out = append(out, t.leaf(leafTopologyV2)...)
	}
	if h.tscKHz > 0 && maxLeaf(out, leafKVM) > 0 {
		out = append(out, kvm.CPUIDEntry{Function: leafTiming, EAX: uint32(h.tscKHz), EBX: lapicTimerKHz})
	}
	slices.SortStableFunc(out, func(a, b kvm.CPUIDEntry) int {
		return cmp.Or(cmp.Compare(a.Function, b.Function), cmp.Compare(a.Index, b.Index))
	})
	return out
}

// has reports whether the host has the leaf and it pleases f.
func (h hostCPU) has(leaf uint32, f func(kvm.CPUIDEntry) bool) bool {
	return slices.ContainsFunc(h.supported, func(e kvm.CPUIDEntry) bool { return e.Function == leaf && f(e) })
}

// isAMD reports whether the processor is AMD's or Hygon's, whose topology is
// also in leaves that others reserve.
func (h hostCPU) isAMD() bool {
	const auth, hygo = 0x6874_7541, 0x6f67_7948 // EBX of "AuthenticAMD", "HygonGenuine"
	return h.has(0, func(e kvm.CPUIDEntry) bool { return e.EBX == auth || e.EBX == hygo })
}

// hasAMX reports whether KVM gives guests all of AMX's state; some versions
// list its configuration without its data.
func (h hostCPU) hasAMX() bool {
	return h.has(leafXSAVE, func(e kvm.CPUIDEntry) bool { return e.Index == 0 && e.EAX&xsaveAMX == xsaveAMX })
}

// keepReserved clears what only AMD defines.
func keepReserved(e *kvm.CPUIDEntry) {
	switch e.Function {
	case leafExtFeatures:
		e.ECX &^= extCmpLegacy
	case leafAddressSizes:
		e.ECX = 0
	}
}

// lapicTimerKHz is the frequency of KVM's emulated APIC bus, in kHz.
const lapicTimerKHz = 1_000_000

func maxLeaf(entries []kvm.CPUIDEntry, base uint32) uint32 {
	for _, e := range entries {
		if e.Function == base {
			return e.EAX
		}
	}
	return 0
}

// topology places vCPU id among n cores of one socket.
type topology struct{ id, n uint32 }

// bits is how many bits of the APIC id count cores.
func (t topology) bits() uint32 { return uint32(bits.Len32(t.n - 1)) }

// leaf returns the extended topology leaf (0xb or 0x1f): threads, cores, end.
func (t topology) leaf(function uint32) []kvm.CPUIDEntry {
	level := func(index, shift, count, typ uint32) kvm.CPUIDEntry {
		return kvm.CPUIDEntry{
			Function: function, Index: index, Flags: kvm.CPUIDSignificantIndex,
			EAX: shift, EBX: count, ECX: typ<<8 | index, EDX: t.id,
		}
	}
	return []kvm.CPUIDEntry{
		level(0, 0, 1, levelSMT),
		level(1, t.bits(), t.n, levelCore),
		level(2, 0, 0, 0),
	}
}

// adapt changes one entry for the guest.
func (h hostCPU) adapt(e *kvm.CPUIDEntry, t topology) {
	switch e.Function {
	case leafFeatures:
		e.ECX &^= ecxDTES64 | ecxMonitor | ecxDSCPL | ecxVMX | ecxSMX | ecxEST | ecxTM2 | ecxSDBG | ecxPDCM | ecxOSXSAVE
		e.ECX |= ecxHypervisor | ecxX2APIC
		if h.tscDeadline {
			e.ECX |= ecxTSCDeadline
		}
		e.EDX &^= edxDS | edxACPI | edxHTT | edxTM | edxPBE
		if t.n > 1 {
			e.EDX |= edxHTT
		}
		e.EBX = e.EBX&0xffff | min(t.n, 255)<<16 | t.id<<24
	case leafCaches:
		if e.EAX&0x1f == 0 { // no more caches
			return
		}
		level := e.EAX >> 5 & 7
		e.EAX &= 0x3fff
		e.EAX |= min(uint32(1)<<t.bits()-1, 0x3f) << 26
		if level >= 3 { // shared by all cores
			e.EAX |= (uint32(1)<<t.bits() - 1) << 14
		}
	case leafStructured:
		if e.Index == 0 && !h.hasAMX() {
			e.EDX &^= edxAMX
		}
	case leafThermal:
		const arat = 1 << 2 // the APIC timer does not stop
		e.EAX &= arat
		e.EBX, e.ECX, e.EDX = 0, 0, 0
	case leafPMU, leafSGX, leafTrace, leafSVM, leafIBS, leafLWP, leafSEV, leafPerfMonV2, leafAMDTopoV2:
		e.EAX, e.EBX, e.ECX, e.EDX = 0, 0, 0, 0
	case leafKVM:
		e.EAX = leafKVMFeatures
		if h.tscKHz > 0 {
			e.EAX = leafTiming
		}
	case leafExtFeatures:
		e.ECX &^= extSVM | extIBS | extSKINIT | extWDT | extLWP | extPerfCtrCore | extPerfCtrNB | extPerfCtrLLC | extCmpLegacy
		if t.n > 1 {
			e.ECX |= extCmpLegacy
		}
	case leafAddressSizes:
		e.ECX = t.bits()<<12 | (t.n - 1)
	case leafAMDCaches:
		if e.EAX&0x1f == 0 {
			return
		}
		level := e.EAX >> 5 & 7
		e.EAX &= 0x3fff
		if level >= 3 {
			e.EAX |= (t.n - 1) << 14
		}
	case leafAMDTopology:
		e.EAX, e.EBX, e.ECX, e.EDX = t.id, t.id, 0, 0
	}
}

// xsaveHeader is what every XSAVE area begins with, in bytes: the legacy
// region and the header (Intel SDM volume 1, section 13.4).
const xsaveHeader = 512 + 64

// consistentXSAVE makes the sub-leaves of leaf 0xd agree with each other: a
// state component that is offered has its sub-leaf with a size, one that has
// no sub-leaf is not offered, and the sizes of the whole area are those of its
// components. A kernel stops booting where they contradict (seen under
// emulators).
func consistentXSAVE(entries []kvm.CPUIDEntry) []kvm.CPUIDEntry {
	var main, ext *kvm.CPUIDEntry
	component := map[uint32]kvm.CPUIDEntry{}
	for i := range entries {
		switch e := &entries[i]; e.Index {
		case 0:
			main = e
		case 1:
			ext = e
		default:
			component[e.Index] = *e
		}
	}
	if main == nil {
		return nil
	}
	const x87, sse = 1 << 0, 1 << 1
	user := uint64(main.EDX)<<32 | uint64(main.EAX)
	var supervisor uint64
	if ext != nil {
		supervisor = uint64(ext.EDX)<<32 | uint64(ext.ECX)
	}
	for i := uint32(2); i < 63; i++ {
		if c, there := component[i]; !there || c.EAX == 0 {
			user &^= 1 << i
		}
	}
	for _, group := range []uint64{xsaveMPX, xsaveAVX512, xsaveAMX} {
		if user&group != group || group == xsaveAVX512 && user&xsaveAVX == 0 {
			user &^= group
		}
	}
	end := uint32(xsaveHeader)
	for i := uint32(2); i < 63; i++ {
		bit := uint64(1) << i
		c, there := component[i]
		if !there || c.EAX == 0 {
			user &^= bit
			supervisor &^= bit
			delete(component, i)
			continue
		}
		if user&bit != 0 {
			end = max(end, c.EBX+c.EAX)
		}
	}
	user |= x87 | sse
	main.EAX, main.EDX = uint32(user), uint32(user>>32)
	main.EBX, main.ECX = xsaveHeader, end // EBX follows XCR0 when KVM answers
	out := []kvm.CPUIDEntry{*main}
	if ext != nil {
		ext.ECX, ext.EDX = uint32(supervisor), uint32(supervisor>>32)
		out = append(out, *ext)
	}
	for i := uint32(2); i < 63; i++ {
		if c, ok := component[i]; ok && (user|supervisor)>>i&1 != 0 {
			out = append(out, c)
		}
	}
	return out
}
