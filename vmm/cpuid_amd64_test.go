package vmm

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/kvm"
)

func cpuidEntry(t *testing.T, entries []kvm.CPUIDEntry, function, index uint32) kvm.CPUIDEntry {
	t.Helper()
	for _, e := range entries {
		if e.Function == function && e.Index == index {
			return e
		}
	}
	require.Failf(t, "no such leaf", "%#x.%d", function, index)
	return kvm.CPUIDEntry{}
}

func TestGuestCPUID(t *testing.T) {
	all := uint32(0xffff_ffff)
	h := hostCPU{tscDeadline: true, tscKHz: 2_500_000, supported: []kvm.CPUIDEntry{
		{Function: 0, EAX: 0x1f, EBX: 0x6874_7541}, // AuthenticAMD
		{Function: leafFeatures, EBX: 0xaabb_ccdd, ECX: all &^ (ecxTSCDeadline | ecxX2APIC | ecxHypervisor), EDX: all},
		{Function: leafCaches, Index: 0, Flags: 1, EAX: 0xffff_c121},
		{Function: leafCaches, Index: 3, Flags: 1, EAX: 0xffff_c163},
		{Function: leafCaches, Index: 4, Flags: 1, EAX: 0},
		{Function: leafThermal, EAX: all, ECX: all},
		{Function: leafPMU, EAX: all, EDX: all},
		{Function: leafTopology, Index: 0, Flags: 1, EAX: 7, EDX: 99},
		{Function: leafTopologyV2, Index: 0, Flags: 1, EAX: 7, EDX: 99},
		{Function: leafKVM, EAX: leafKVMFeatures, EBX: 0x4b4d564b},
		{Function: leafKVMFeatures, EAX: 0x1234},
		{Function: leafExtended, EAX: leafSEV},
		{Function: leafExtFeatures, ECX: all},
		{Function: leafAddressSizes, ECX: 0x7007},
		{Function: leafSVM, EAX: 1, EDX: all},
		{Function: leafAMDTopology, EAX: 77, EBX: 77, ECX: 77},
	}}
	for _, tc := range []struct {
		name      string
		id, n     int
		shift     uint32
		threads   bool
		addrSizes uint32
	}{
		{"one", 0, 1, 0, false, 0},
		{"third of four", 2, 4, 2, true, 0x2003},
		{"last of five", 4, 5, 3, true, 0x3004},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id := uint32(tc.id)
			e := guestCPUID(h, tc.id, tc.n)
			f := cpuidEntry(t, e, leafFeatures, 0)
			assert.Equal(t, id<<24|uint32(tc.n)<<16|0xccdd, f.EBX)
			assert.Zero(t, f.ECX&(ecxVMX|ecxMonitor|ecxPDCM|ecxOSXSAVE))
			assert.NotZero(t, f.ECX&ecxHypervisor)
			assert.NotZero(t, f.ECX&ecxX2APIC)
			assert.NotZero(t, f.ECX&ecxTSCDeadline)
			assert.Equal(t, tc.threads, f.EDX&edxHTT != 0)
			for _, leaf := range []uint32{leafTopology, leafTopologyV2} {
				assert.Equal(t, kvm.CPUIDEntry{Function: leaf, Index: 0, Flags: 1, EAX: 0, EBX: 1, ECX: 0x100, EDX: id}, cpuidEntry(t, e, leaf, 0))
				assert.Equal(t, kvm.CPUIDEntry{Function: leaf, Index: 1, Flags: 1, EAX: tc.shift, EBX: uint32(tc.n), ECX: 0x201, EDX: id}, cpuidEntry(t, e, leaf, 1))
				assert.Equal(t, kvm.CPUIDEntry{Function: leaf, Index: 2, Flags: 1, ECX: 2, EDX: id}, cpuidEntry(t, e, leaf, 2))
			}
			assert.Zero(t, cpuidEntry(t, e, leafPMU, 0).EAX)
			assert.Zero(t, cpuidEntry(t, e, leafSVM, 0).EDX)
			assert.Equal(t, uint32(1<<2), cpuidEntry(t, e, leafThermal, 0).EAX)
			x := cpuidEntry(t, e, leafExtFeatures, 0)
			assert.Zero(t, x.ECX&(extSVM|extPerfCtrCore))
			assert.Equal(t, tc.threads, x.ECX&extCmpLegacy != 0)
			assert.Equal(t, tc.addrSizes, cpuidEntry(t, e, leafAddressSizes, 0).ECX)
			assert.Equal(t, id, cpuidEntry(t, e, leafAMDTopology, 0).EAX)
			assert.Equal(t, id, cpuidEntry(t, e, leafAMDTopology, 0).EBX)
			assert.Equal(t, uint32(leafTiming), cpuidEntry(t, e, leafKVM, 0).EAX)
			assert.Equal(t, uint32(2_500_000), cpuidEntry(t, e, leafTiming, 0).EAX)
			assert.Zero(t, cpuidEntry(t, e, leafCaches, 0).EAX>>14&0xfff, "L1 is a core's own")
			assert.Equal(t, uint32(1<<tc.shift-1), cpuidEntry(t, e, leafCaches, 3).EAX>>14&0xfff, "L3 is shared")
			assert.Zero(t, cpuidEntry(t, e, leafCaches, 4).EAX)
		})
	}
}

func TestGuestCPUIDOfOtherHosts(t *testing.T) {
	intel := uint32(0x756e_6547) // "Genu"
	x := []kvm.CPUIDEntry{
		{Function: leafXSAVE, Index: 0, Flags: 1, EAX: 0x2_0007, ECX: 3000},
		{Function: leafXSAVE, Index: 2, Flags: 1, EAX: 256, EBX: 576},
		{Function: leafXSAVE, Index: 17, Flags: 1, EAX: 64, EBX: 2752},
	}
	base := []kvm.CPUIDEntry{
		{Function: 0, EAX: 0x1f, EBX: intel},
		{Function: leafStructured, Flags: 1, EDX: edxAMX | 1},
		{Function: leafTile, Flags: 1, EAX: 1},
		{Function: leafExtFeatures, ECX: extCmpLegacy},
		{Function: leafAddressSizes, EAX: 0x302e, ECX: 0x7007},
	}
	t.Run("Intel, half of AMX", func(t *testing.T) {
		h := hostCPU{supported: slices.Concat(base, x, []kvm.CPUIDEntry{{Function: leafFeatures, ECX: ecxXSAVE}})}
		e := guestCPUID(h, 1, 4)
		assert.Equal(t, uint32(7), cpuidEntry(t, e, leafXSAVE, 0).EAX, "an XCR0 with half of AMX is refused")
		assert.Equal(t, uint32(1), cpuidEntry(t, e, leafStructured, 0).EDX)
		assert.False(t, slices.ContainsFunc(e, func(e kvm.CPUIDEntry) bool { return e.Function == leafTile }))
		assert.Zero(t, cpuidEntry(t, e, leafExtFeatures, 0).ECX, "reserved on Intel")
		assert.Zero(t, cpuidEntry(t, e, leafAddressSizes, 0).ECX, "reserved on Intel")
	})
	t.Run("no XSAVE", func(t *testing.T) {
		h := hostCPU{supported: slices.Concat(base, []kvm.CPUIDEntry{{Function: leafFeatures}, {Function: leafXSAVE, Flags: 1}})}
		e := guestCPUID(h, 0, 1)
		assert.False(t, slices.ContainsFunc(e, func(e kvm.CPUIDEntry) bool { return e.Function == leafXSAVE }))
	})
}

func TestConsistentXSAVE(t *testing.T) {
	const fn = leafXSAVE
	for _, tc := range []struct {
		name     string
		in, want []kvm.CPUIDEntry
	}{
		{"none", nil, nil},
		{
			"component without a sub-leaf", // as TCG has it
			[]kvm.CPUIDEntry{{Function: fn, EAX: 0x207, EBX: 576, ECX: 2696}, {Function: fn, Index: 2, EAX: 256, EBX: 576}},
			[]kvm.CPUIDEntry{{Function: fn, EAX: 0x7, EBX: 576, ECX: 832}, {Function: fn, Index: 2, EAX: 256, EBX: 576}},
		},
		{
			"sub-leaf of nothing",
			[]kvm.CPUIDEntry{{Function: fn, EAX: 0x3, ECX: 576}, {Function: fn, Index: 2, EAX: 256, EBX: 576}},
			[]kvm.CPUIDEntry{{Function: fn, EAX: 0x3, EBX: 576, ECX: 576}},
		},
		{
			"supervisor state",
			[]kvm.CPUIDEntry{
				{Function: fn, EAX: 0x7, ECX: 832}, {Function: fn, Index: 1, EAX: 0xf, ECX: 0x1900},
				{Function: fn, Index: 2, EAX: 256, EBX: 576}, {Function: fn, Index: 11, EAX: 16, ECX: 1}, {Function: fn, Index: 12, EAX: 24, ECX: 1},
			},
			[]kvm.CPUIDEntry{
				{Function: fn, EAX: 0x7, EBX: 576, ECX: 832}, {Function: fn, Index: 1, EAX: 0xf, ECX: 0x1800},
				{Function: fn, Index: 2, EAX: 256, EBX: 576}, {Function: fn, Index: 11, EAX: 16, ECX: 1}, {Function: fn, Index: 12, EAX: 24, ECX: 1},
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) { assert.Equal(t, tc.want, consistentXSAVE(tc.in)) })
	}
}
