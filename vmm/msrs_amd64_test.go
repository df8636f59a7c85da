package vmm

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/kvm"
)

func TestInitialMSRsCoverThePhysicalAddress(t *testing.T) {
	for _, bits := range []uint32{36, 40, 46, 52} {
		cpuid := []kvm.CPUIDEntry{{Function: leafAddressSizes, EAX: 0x3000 | bits}}
		assert.Equal(t, bits, physBits(cpuid))
		for _, m := range initialMSRs(cpuid) {
			if m.Index == msrMTRRPhysMask0 {
				assert.Equal(t, uint64(1)<<bits-1<<30|1<<11, m.Data, "%d bits", bits)
			}
		}
	}
	assert.EqualValues(t, 36, physBits(nil))
}

func TestNeededMSRs(t *testing.T) {
	needed := func(edx uint32) (list []uint32) {
		for _, m := range initialMSRs([]kvm.CPUIDEntry{{Function: leafFeatures, EDX: edx}}) {
			if m.needed {
				list = append(list, m.Index)
			}
		}
		return list
	}
	assert.Equal(t, []uint32{msrMTRRDefType}, needed(edxMTRR))
	assert.Empty(t, needed(0), "of a processor without MTRRs")
}

// TestRefusedMSR: an MSR that KVM refuses is an error that names it, or only
// noted where a guest can do without.
func TestRefusedMSR(t *testing.T) {
	const oldDefault = 6 // write-back, MTRRs off
	const mcgCap = 0x179 // IA32_MCG_CAP: KVM_X86_SETUP_MCE sets it, no KVM_SET_MSRS does
	bad := kvm.MSREntry{Index: mcgCap, Data: 0x2a}
	for _, tc := range []struct {
		name   string
		needed bool
	}{{"optional", false}, {"needed", true}} {
		t.Run(tc.name, func(t *testing.T) {
			needKVM(t)
			var log bytes.Buffer
			m, err := New(Config{KernelImage: payload(spin), Memory: 4 << 20,
				Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
			require.NoError(t, err)
			defer m.Close()
			log.Reset()

			c := m.vcpus[0]
			err = c.setMSRs([]initialMSR{{bad, tc.needed}, {kvm.MSREntry{Index: msrMTRRDefType, Data: oldDefault}, true}})
			after, rerr := c.kvm.GetMSRs(msrMTRRDefType)
			require.NoError(t, rerr)
			if tc.needed {
				var refused *kvm.MSRError
				require.ErrorAs(t, err, &refused)
				assert.EqualValues(t, mcgCap, refused.Index)
				assert.ErrorContains(t, err, "refused MSR 0x179 = 0x2a")
				assert.Empty(t, log.String())
				return
			}
			require.NoError(t, err)
			assert.Contains(t, log.String(), "refused MSR 0x179 = 0x2a")
			assert.EqualValues(t, oldDefault, after[0].Data, "what comes behind it is set")
		})
	}
}
