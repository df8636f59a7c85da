package kvm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// CPUIDEntry mirrors struct kvm_cpuid_entry2: what CPUID returns for one leaf,
// or for one subleaf if Flags has CPUIDSignificantIndex.
type CPUIDEntry struct {
	Function uint32 // EAX on entry
	Index    uint32 // ECX on entry
	Flags    uint32
	EAX      uint32
	EBX      uint32
	ECX      uint32
	EDX      uint32
	_        [3]uint32
}

// CPUIDSignificantIndex in CPUIDEntry.Flags: the entry holds for its Index only
// (KVM_CPUID_FLAG_SIGNIFCANT_INDEX).
const CPUIDSignificantIndex = 1 << 0

// Bounds of the lists that the kernel returns; it has about 50 CPUID entries and
// 100 MSRs today.
const (
	cpuidGuess = 128
	cpuidMax   = 1 << 14
	msrListMax = 1 << 16
	msrChunk   = 255 // the kernel refuses MAX_IO_MSRS, 256, and more
)

// SupportedCPUID returns the leaves that this processor and KVM can give a guest
// (KVM_GET_SUPPORTED_CPUID). Topology, APIC ids and hypervisor leaves are the
// host's or empty: the caller completes them. The slice is the caller's.
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	return readCPUID(s.fd, kvmGetSupportedCPUID, "KVM_GET_SUPPORTED_CPUID", CapExtCPUID, s.Check)
}

func readCPUID(fd int, req uintptr, op string, c Cap, check func(Cap) (int, error)) ([]CPUIDEntry, error) {
	for n := cpuidGuess; ; n *= 2 {
		head, entries := newFlex[cpuidHead, CPUIDEntry](n)
		head.NEnt = uint32(n)
		_, err := ioctlStruct(fd, req, head)
		if errors.Is(err, unix.E2BIG) && n < cpuidMax {
			continue
		}
		if err != nil {
			return nil, capError(op, c, check, err)
		}
		if int(head.NEnt) > n {
			return nil, fmt.Errorf("kvm: %s: %d entries returned where %d had room", op, head.NEnt, n)
		}
		return trimCPUID(entries[:head.NEnt:head.NEnt]), nil
	}
}

// trimCPUID cuts off the entries that nobody wrote: before Linux 6.2
// KVM_GET_CPUID2 leaves the count as the caller set it. An entry of zeroes only
// would be leaf 0, which is the first.
func trimCPUID(entries []CPUIDEntry) []CPUIDEntry {
	n := len(entries)
	for n > 0 && entries[n-1] == (CPUIDEntry{}) {
		n--
	}
	return entries[:n:n]
}

// MSRIndices returns the numbers of the MSRs that a vCPU can save and restore
// (KVM_GET_MSR_INDEX_LIST).
func (s *System) MSRIndices() ([]uint32, error) {
	return readMSRList(s.fd, kvmGetMSRIndexList, "KVM_GET_MSR_INDEX_LIST", CapUserMemory, s.Check)
}

// FeatureMSRs returns the numbers of the MSRs that describe what the host can
// offer, to be read by ReadFeatureMSRs (KVM_GET_MSR_FEATURE_INDEX_LIST). It needs
// CapGetMSRFeatures.
func (s *System) FeatureMSRs() ([]uint32, error) {
	return readMSRList(s.fd, kvmGetMSRFeatureIndexList, "KVM_GET_MSR_FEATURE_INDEX_LIST", CapGetMSRFeatures, s.Check)
}

func readMSRList(fd int, req uintptr, op string, c Cap, check func(Cap) (int, error)) ([]uint32, error) {
	for n := 0; ; {
		head, indices := newFlex[msrListHead, uint32](n)
		head.NMSRs = uint32(n)
		_, err := ioctlStruct(fd, req, head)
		got := int(head.NMSRs)
		switch {
		case errors.Is(err, unix.E2BIG) && got > n && got <= msrListMax:
			n = got
			continue
		case err != nil:
			return nil, capError(op, c, check, err)
		case got > n:
			return nil, fmt.Errorf("kvm: %s: %d entries returned where %d had room", op, got, n)
		}
		return indices[:got:got], nil
	}
}

// ReadFeatureMSRs reads host feature MSRs (KVM_GET_MSRS on the device). A number
// that KVM refuses gives a *MSRError, together with the entries before it.
func (s *System) ReadFeatureMSRs(index ...uint32) ([]MSREntry, error) {
	entries, err := readMSRs(s.fd, index)
	var refused *MSRError
	if err != nil && !errors.As(err, &refused) {
		return nil, capError(opGetMSRs, CapGetMSRFeatures, s.Check, err)
	}
	return entries, err
}

// readMSRs reads in chunks that the kernel takes. The error is a bare errno or a
// *MSRError; the entries are those read.
func readMSRs(fd int, index []uint32) ([]MSREntry, error) {
	all := make([]MSREntry, 0, len(index))
	for len(all) < len(index) {
		chunk := index[len(all):min(len(all)+msrChunk, len(index))]
		head, entries := newFlex[msrsHead, MSREntry](len(chunk))
		head.NMSRs = uint32(len(chunk))
		for i, msr := range chunk {
			entries[i].Index = msr
		}
		done, err := ioctlStruct(fd, kvmGetMSRs, head)
		if err != nil {
			return all, err
		}
		all = append(all, entries[:min(done, len(chunk))]...)
		if done < len(chunk) {
			return all, &MSRError{Op: opGetMSRs, Index: chunk[done], Entry: MSREntry{Index: chunk[done]}, Done: len(all)}
		}
	}
	return all, nil
}

// writeMSRs is readMSRs' counterpart.
func writeMSRs(fd int, msrs []MSREntry) error {
	for n := 0; n < len(msrs); {
		chunk := msrs[n:min(n+msrChunk, len(msrs))]
		head, entries := newFlex[msrsHead, MSREntry](len(chunk))
		head.NMSRs = uint32(len(chunk))
		copy(entries, chunk)
		done, err := ioctlStruct(fd, kvmSetMSRs, head)
		if err != nil {
			return err
		}
		n += min(done, len(chunk))
		if done < len(chunk) {
			return &MSRError{Op: opSetMSRs, Index: chunk[done].Index, Entry: chunk[done], Done: n}
		}
	}
	return nil
}
