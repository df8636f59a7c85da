package kvm

import (
	"bufio"
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const layoutGolden = "testdata/layout.golden"

// Embedded, so that the test binary runs by itself on another host.
//
//go:embed testdata/layout.golden
var layoutNumbers []byte

// A layout pairs a Go struct with the kernel's: their sizes must agree, and the
// offset of each Go field with that of the C field.
type layout struct {
	c      string // C type
	goType any
	base   string // "" or the member of c that goType is: "io" of kvm_run
	fields string // pairs Go=C
}

var layouts = []layout{
	{c: "kvm_userspace_memory_region", goType: userMemoryRegion{}, fields: "Slot=slot Flags=flags GuestPhysAddr=guest_phys_addr MemorySize=memory_size UserspaceAddr=userspace_addr"},
	{c: "kvm_dirty_log", goType: dirtyLog{}, fields: "Slot=slot Bitmap=dirty_bitmap"},
	{c: "kvm_enable_cap", goType: enableCap{}, fields: "Cap=cap Flags=flags Args=args"},
	{c: "kvm_irq_level", goType: irqLevel{}, fields: "IRQ=irq Level=level"},
	{c: "kvm_irqfd", goType: irqFD{}, fields: "FD=fd GSI=gsi Flags=flags ResampleFD=resamplefd"},
	{c: "kvm_ioeventfd", goType: ioEventFD{}, fields: "DataMatch=datamatch Addr=addr Len=len FD=fd Flags=flags"},
	{c: "kvm_msi", goType: msi{}, fields: "AddressLo=address_lo AddressHi=address_hi Data=data Flags=flags DevID=devid"},
	{c: "kvm_irq_routing", goType: irqRoutingHead{}, fields: "NR=nr Flags=flags"},
	{c: "kvm_irq_routing_entry", goType: irqRoutingEntry{}, fields: "GSI=gsi Type=type Flags=flags U=u"},
	{c: "kvm_coalesced_mmio_zone", goType: coalescedZone{}, fields: "Addr=addr Size=size PIO=pio"},
	{c: "kvm_coalesced_mmio", goType: coalescedMMIO{}, fields: "PhysAddr=phys_addr Len=len PIO=pio Data=data"},
	{c: "kvm_mp_state", goType: mpState{}, fields: "State=mp_state"},
	{c: "kvm_run", goType: runPage{}, fields: "RequestInterruptWindow=request_interrupt_window ImmediateExit=immediate_exit ExitReason=exit_reason ReadyForInterruptInjection=ready_for_interrupt_injection IFFlag=if_flag Flags=flags CR8=cr8 APICBase=apic_base Exit=io ValidRegs=kvm_valid_regs DirtyRegs=kvm_dirty_regs Sync=s"},
	{c: "kvm_run", base: "io", goType: exitIO{}, fields: "Direction=io.direction Size=io.size Port=io.port Count=io.count DataOffset=io.data_offset"},
	{c: "kvm_run", base: "mmio", goType: exitMMIO{}, fields: "PhysAddr=mmio.phys_addr Data=mmio.data Len=mmio.len IsWrite=mmio.is_write"},
	{c: "kvm_run", base: "internal", goType: exitInternal{}, fields: "Suberror=internal.suberror NData=internal.ndata Data=internal.data"},
	{c: "kvm_run", base: "fail_entry", goType: exitFailEntry{}, fields: "Reason=fail_entry.hardware_entry_failure_reason CPU=fail_entry.cpu"},
	{c: "kvm_run", base: "system_event", goType: exitSystemEvent{}, fields: "Type=system_event.type NData=system_event.ndata Data=system_event.data"},
	{c: "kvm_cpuid2", goType: cpuidHead{}, fields: "NEnt=nent"},
	{c: "kvm_cpuid_entry2", goType: CPUIDEntry{}, fields: "Function=function Index=index Flags=flags EAX=eax EBX=ebx ECX=ecx EDX=edx"},
	{c: "kvm_msr_list", goType: msrListHead{}, fields: "NMSRs=nmsrs"},
	{c: "kvm_msrs", goType: msrsHead{}, fields: "NMSRs=nmsrs"},
	{c: "kvm_msr_entry", goType: MSREntry{}, fields: "Index=index Data=data"},
	{c: "kvm_regs", goType: Regs{}, fields: "RAX=rax RBX=rbx RCX=rcx RDX=rdx RSI=rsi RDI=rdi RSP=rsp RBP=rbp R8=r8 R9=r9 R10=r10 R11=r11 R12=r12 R13=r13 R14=r14 R15=r15 RIP=rip RFLAGS=rflags"},
	{c: "kvm_segment", goType: Segment{}, fields: "Base=base Limit=limit Selector=selector Type=type Present=present DPL=dpl DB=db S=s L=l G=g AVL=avl Unusable=unusable"},
	{c: "kvm_dtable", goType: DTable{}, fields: "Base=base Limit=limit"},
	{c: "kvm_sregs", goType: Sregs{}, fields: "CS=cs DS=ds ES=es FS=fs GS=gs SS=ss TR=tr LDT=ldt GDT=gdt IDT=idt CR0=cr0 CR2=cr2 CR3=cr3 CR4=cr4 CR8=cr8 EFER=efer APICBase=apic_base InterruptBitmap=interrupt_bitmap"},
	{c: "kvm_debugregs", goType: DebugRegs{}, fields: "DB=db DR6=dr6 DR7=dr7 Flags=flags"},
	{c: "kvm_translation", goType: Translation{}, fields: "LinearAddress=linear_address PhysicalAddress=physical_address Valid=valid Writeable=writeable Usermode=usermode"},
	{c: "kvm_fpu", goType: FPU{}, fields: "FPR=fpr FCW=fcw FSW=fsw FTWX=ftwx LastOpcode=last_opcode LastIP=last_ip LastDP=last_dp XMM=xmm MXCSR=mxcsr"},
	{c: "kvm_xsave", goType: [xsaveSize]byte{}},
	{c: "kvm_xcr", goType: XCR{}, fields: "XCR=xcr Value=value"},
	{c: "kvm_xcrs", goType: xcrs{}, fields: "NRXCRs=nr_xcrs Flags=flags XCRs=xcrs"},
	{c: "kvm_lapic_state", goType: LAPIC{}, fields: "Regs=regs"},
	{c: "kvm_vcpu_events", goType: Events{}, fields: "Exception=exception Exception.Injected=exception.injected Exception.NR=exception.nr Exception.HasErrorCode=exception.has_error_code Exception.Pending=exception.pending Exception.ErrorCode=exception.error_code Interrupt=interrupt Interrupt.Injected=interrupt.injected Interrupt.NR=interrupt.nr Interrupt.Soft=interrupt.soft Interrupt.Shadow=interrupt.shadow NMI=nmi NMI.Injected=nmi.injected NMI.Pending=nmi.pending NMI.Masked=nmi.masked SIPIVector=sipi_vector Flags=flags SMI=smi SMI.SMM=smi.smm SMI.Pending=smi.pending SMI.SMMInsideNMI=smi.smm_inside_nmi SMI.LatchedInit=smi.latched_init TripleFaultPending=triple_fault.pending ExceptionHasPayload=exception_has_payload ExceptionPayload=exception_payload"},
	{c: "kvm_pit_config", goType: PITConfig{}, fields: "Flags=flags"},
	{c: "kvm_pit_channel_state", goType: PITChannel{}, fields: "Count=count LatchedCount=latched_count CountLatched=count_latched StatusLatched=status_latched Status=status ReadState=read_state WriteState=write_state WriteLatch=write_latch RWMode=rw_mode Mode=mode BCD=bcd Gate=gate CountLoadTime=count_load_time"},
	{c: "kvm_pit_state2", goType: PITState{}, fields: "Channels=channels Flags=flags"},
	{c: "kvm_irqchip", goType: IRQChip{}, fields: "ChipID=chip_id Chip=chip"},
	{c: "kvm_pic_state", goType: PICState{}, fields: "LastIRR=last_irr IRR=irr IMR=imr ISR=isr PriorityAdd=priority_add IRQBase=irq_base ReadRegSelect=read_reg_select Poll=poll SpecialMask=special_mask InitState=init_state AutoEOI=auto_eoi RotateOnAutoEOI=rotate_on_auto_eoi SpecialFullyNestedMode=special_fully_nested_mode Init4=init4 ELCR=elcr ELCRMask=elcr_mask"},
	{c: "kvm_ioapic_state", goType: IOAPICState{}, fields: "BaseAddress=base_address IORegSel=ioregsel ID=id IRR=irr Redirection=redirtbl"},
	{c: "kvm_clock_data", goType: ClockData{}, fields: "Clock=clock Flags=flags Realtime=realtime HostTSC=host_tsc"},
}

// numbers pairs a C constant expression with its value here.
var numbers = []struct {
	c     string
	value uint64
}{
	{"KVM_API_VERSION", apiVersion},
	{"KVM_GET_API_VERSION", kvmGetAPIVersion},
	{"KVM_CREATE_VM", kvmCreateVM},
	{"KVM_CHECK_EXTENSION", kvmCheckExtension},
	{"KVM_GET_VCPU_MMAP_SIZE", kvmGetVCPUMmapSize},
	{"KVM_CREATE_VCPU", kvmCreateVCPU},
	{"KVM_GET_DIRTY_LOG", uint64(kvmGetDirtyLog)},
	{"KVM_SET_USER_MEMORY_REGION", uint64(kvmSetUserMemoryRegion)},
	{"KVM_IRQ_LINE", uint64(kvmIRQLine)},
	{"KVM_REGISTER_COALESCED_MMIO", uint64(kvmRegisterCoalesced)},
	{"KVM_UNREGISTER_COALESCED_MMIO", uint64(kvmUnregisterCoalesced)},
	{"KVM_SET_GSI_ROUTING", uint64(kvmSetGSIRouting)},
	{"KVM_IRQFD", uint64(kvmIRQFD)},
	{"KVM_IOEVENTFD", uint64(kvmIOEventFD)},
	{"KVM_SIGNAL_MSI", uint64(kvmSignalMSI)},
	{"KVM_ENABLE_CAP", uint64(kvmEnableCap)},
	{"KVM_RUN", kvmRun},
	{"KVM_GET_MP_STATE", uint64(kvmGetMPState)},
	{"KVM_SET_MP_STATE", uint64(kvmSetMPState)},
	{"KVM_GET_MSR_INDEX_LIST", uint64(kvmGetMSRIndexList)},
	{"KVM_GET_SUPPORTED_CPUID", uint64(kvmGetSupportedCPUID)},
	{"KVM_GET_MSR_FEATURE_INDEX_LIST", uint64(kvmGetMSRFeatureIndexList)},
	{"KVM_SET_TSS_ADDR", kvmSetTSSAddr},
	{"KVM_SET_IDENTITY_MAP_ADDR", uint64(kvmSetIdentityMapAddr)},
	{"KVM_CREATE_IRQCHIP", kvmCreateIRQChip},
	{"KVM_GET_IRQCHIP", uint64(kvmGetIRQChip)},
	{"KVM_SET_IRQCHIP", uint64(kvmSetIRQChip)},
	{"KVM_CREATE_PIT2", uint64(kvmCreatePIT2)},
	{"KVM_SET_CLOCK", uint64(kvmSetClock)},
	{"KVM_GET_CLOCK", uint64(kvmGetClock)},
	{"KVM_GET_PIT2", uint64(kvmGetPIT2)},
	{"KVM_SET_PIT2", uint64(kvmSetPIT2)},
	{"KVM_SET_TSC_KHZ", kvmSetTSCKHz},
	{"KVM_GET_TSC_KHZ", kvmGetTSCKHz},
	{"KVM_GET_REGS", uint64(kvmGetRegs)},
	{"KVM_SET_REGS", uint64(kvmSetRegs)},
	{"KVM_GET_SREGS", uint64(kvmGetSregs)},
	{"KVM_SET_SREGS", uint64(kvmSetSregs)},
	{"KVM_TRANSLATE", uint64(kvmTranslate)},
	{"KVM_GET_MSRS", uint64(kvmGetMSRs)},
	{"KVM_SET_MSRS", uint64(kvmSetMSRs)},
	{"KVM_GET_FPU", uint64(kvmGetFPU)},
	{"KVM_SET_FPU", uint64(kvmSetFPU)},
	{"KVM_GET_LAPIC", uint64(kvmGetLAPIC)},
	{"KVM_SET_LAPIC", uint64(kvmSetLAPIC)},
	{"KVM_SET_CPUID2", uint64(kvmSetCPUID2)},
	{"KVM_GET_CPUID2", uint64(kvmGetCPUID2)},
	{"KVM_GET_VCPU_EVENTS", uint64(kvmGetVCPUEvents)},
	{"KVM_SET_VCPU_EVENTS", uint64(kvmSetVCPUEvents)},
	{"KVM_GET_DEBUGREGS", uint64(kvmGetDebugRegs)},
	{"KVM_SET_DEBUGREGS", uint64(kvmSetDebugRegs)},
	{"KVM_GET_XSAVE", uint64(kvmGetXSAVE)},
	{"KVM_SET_XSAVE", uint64(kvmSetXSAVE)},
	{"KVM_GET_XCRS", uint64(kvmGetXCRs)},
	{"KVM_SET_XCRS", uint64(kvmSetXCRs)},
	{"KVM_KVMCLOCK_CTRL", kvmKVMClockCtrl},
	{"KVM_GET_XSAVE2", uint64(kvmGetXSAVE2)},

	{"KVM_MEM_LOG_DIRTY_PAGES", MemLogDirtyPages},
	{"KVM_MEM_READONLY", MemReadonly},
	{"KVM_IRQFD_FLAG_DEASSIGN", IRQFDDeassign},
	{"KVM_IRQFD_FLAG_RESAMPLE", IRQFDResample},
	{"KVM_IOEVENTFD_FLAG_DATAMATCH", IOEventFDDatamatch},
	{"KVM_IOEVENTFD_FLAG_PIO", IOEventFDPIO},
	{"KVM_IOEVENTFD_FLAG_DEASSIGN", IOEventFDDeassign},
	{"KVM_IRQ_ROUTING_IRQCHIP", irqRoutingIRQChip},
	{"KVM_IRQ_ROUTING_MSI", irqRoutingMSI},
	{"KVM_IRQCHIP_PIC_MASTER", ChipPICMaster},
	{"KVM_IRQCHIP_PIC_SLAVE", ChipPICSlave},
	{"KVM_IRQCHIP_IOAPIC", ChipIOAPIC},
	{"KVM_PIT_SPEAKER_DUMMY", PITSpeakerDummy},
	{"KVM_CPUID_FLAG_SIGNIFCANT_INDEX", CPUIDSignificantIndex},
	{"KVM_CLOCK_TSC_STABLE", ClockTSCStable},
	{"KVM_CLOCK_REALTIME", ClockRealtime},
	{"KVM_CLOCK_HOST_TSC", ClockHostTSC},
	{"KVM_VCPUEVENT_VALID_NMI_PENDING", EventNMIPendingValid},
	{"KVM_VCPUEVENT_VALID_SIPI_VECTOR", EventSIPIVectorValid},
	{"KVM_VCPUEVENT_VALID_SHADOW", EventShadowValid},
	{"KVM_VCPUEVENT_VALID_SMM", EventSMMValid},
	{"KVM_VCPUEVENT_VALID_PAYLOAD", EventPayloadValid},
	{"KVM_VCPUEVENT_VALID_TRIPLE_FAULT", EventTripleFaultValid},
	{"KVM_MP_STATE_RUNNABLE", uint64(MPRunnable)},
	{"KVM_MP_STATE_UNINITIALIZED", uint64(MPUninitialized)},
	{"KVM_MP_STATE_INIT_RECEIVED", uint64(MPInitReceived)},
	{"KVM_MP_STATE_HALTED", uint64(MPHalted)},
	{"KVM_MP_STATE_SIPI_RECEIVED", uint64(MPSIPIReceived)},
	{"KVM_INTERNAL_ERROR_EMULATION", InternalEmulation},
	{"KVM_INTERNAL_ERROR_SIMUL_EX", InternalSimultaneous},
	{"KVM_INTERNAL_ERROR_DELIVERY_EV", InternalDeliveryEvent},
	{"KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON", InternalUnexpectedExit},
	{"KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES", emulationHasInstruction},
	{"KVM_SYSTEM_EVENT_SHUTDOWN", SystemEventShutdown},
	{"KVM_SYSTEM_EVENT_RESET", SystemEventReset},
	{"KVM_SYSTEM_EVENT_CRASH", SystemEventCrash},
	{"KVM_SYSTEM_EVENT_WAKEUP", SystemEventWakeup},
	{"KVM_SYSTEM_EVENT_SUSPEND", SystemEventSuspend},
	{"KVM_SYSTEM_EVENT_SEV_TERM", SystemEventSEVTerm},
	{"KVM_EXIT_IO_OUT", exitIOOut},
	{"KVM_MAX_XCRS", maxXCRs},
	{"KVM_COALESCED_MMIO_MAX", uint64(coalescedMax)},
	{"offsetof(struct kvm_coalesced_mmio_ring, coalesced_mmio)", coalescedHead},
	{"offsetof(struct kvm_cpuid2, entries)", 8},
	{"offsetof(struct kvm_msrs, entries)", 8},
	{"offsetof(struct kvm_msr_list, indices)", 4},
	{"offsetof(struct kvm_irq_routing, entries)", 8},
}

// goNumbers computes the value of every C expression from the Go side, in the
// order of the tables: sizes, offsets, constants, capabilities, exit reasons.
func goNumbers(t *testing.T) (exprs []string, values map[string]uint64) {
	t.Helper()
	values = make(map[string]uint64)
	add := func(expr string, v uint64) {
		require.NotContains(t, values, expr, "named twice")
		exprs = append(exprs, expr)
		values[expr] = v
	}
	exitAt, ok := reflect.TypeFor[runPage]().FieldByName("Exit")
	require.True(t, ok)
	for _, l := range layouts {
		typ := reflect.TypeOf(l.goType)
		base := uint64(0)
		if l.base == "" {
			add("sizeof(struct "+l.c+")", uint64(typ.Size()))
		} else {
			base = uint64(exitAt.Offset)
			add("sizeof(((struct "+l.c+" *)0)->"+l.base+")", uint64(typ.Size()))
		}
		for _, pair := range strings.Fields(l.fields) {
			goName, cName, ok := strings.Cut(pair, "=")
			require.True(t, ok, pair)
			off, at := base, typ
			for name := range strings.SplitSeq(goName, ".") {
				f, ok := at.FieldByName(name)
				require.True(t, ok, "%v has no field %s", at, name)
				off += uint64(f.Offset)
				at = f.Type
			}
			add("offsetof(struct "+l.c+", "+cName+")", off)
		}
		covered(t, l, typ)
	}
	for _, n := range numbers {
		add(n.c, n.value)
	}
	for c := Cap(0); c < 300; c++ {
		// The headers of Linux 6.1 end at 223.
		if name := c.String(); strings.HasPrefix(name, "KVM_CAP_") && c <= 223 {
			add(name, uint64(c))
		}
	}
	for r := Reason(0); r <= 37; r++ {
		if name := r.String(); strings.HasPrefix(name, "KVM_EXIT_") {
			add(name, uint64(r))
		}
	}
	return exprs, values
}

// covered fails if the layout leaves out a named field of the Go struct.
func covered(t *testing.T, l layout, typ reflect.Type) {
	if typ.Kind() != reflect.Struct {
		return
	}
	for i := range typ.NumField() {
		name := typ.Field(i).Name
		if name != "_" && name != "Pad" {
			assert.Contains(t, " "+l.fields, " "+name+"=", "%v: field %s is not compared", typ, name)
		}
	}
}

func TestLayoutGolden(t *testing.T) {
	exprs, values := goNumbers(t)
	if *update {
		var b bytes.Buffer
		for i, v := range cNumbers(t, exprs) {
			fmt.Fprintf(&b, "%s = %d\n", exprs[i], v)
		}
		require.NoError(t, os.MkdirAll(filepath.Dir(layoutGolden), 0o755))
		require.NoError(t, os.WriteFile(layoutGolden, b.Bytes(), 0o644))
		return
	}
	want := make(map[string]uint64)
	sc := bufio.NewScanner(bytes.NewReader(layoutNumbers))
	for sc.Scan() {
		expr, v, ok := strings.Cut(sc.Text(), " = ")
		require.True(t, ok, sc.Text())
		n, err := strconv.ParseUint(v, 10, 64)
		require.NoError(t, err)
		want[expr] = n
	}
	assert.Equal(t, want, values)
}

func TestLayoutCompiled(t *testing.T) {
	exprs, values := goNumbers(t)
	for i, v := range cNumbers(t, exprs) {
		assert.Equal(t, v, values[exprs[i]], exprs[i])
	}
}

// cNumbers has the C compiler evaluate exprs against this machine's kernel
// headers; it skips the test if there are none.
func cNumbers(t *testing.T, exprs []string) []uint64 {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("needs gcc: ", err)
	}
	if _, err := os.Stat("/usr/include/linux/kvm.h"); err != nil {
		t.Skip("needs the kernel's headers (linux-libc-dev): ", err)
	}
	var src bytes.Buffer
	src.WriteString("#include <linux/kvm.h>\n#include <stddef.h>\n#include <stdio.h>\n#define PAGE_SIZE 4096\nint main(void) {\n")
	for _, e := range exprs {
		fmt.Fprintf(&src, "\tprintf(\"%%llu\\n\", (unsigned long long)(%s));\n", e)
	}
	src.WriteString("\treturn 0;\n}\n")
	bin := filepath.Join(t.TempDir(), "layout")
	cc := exec.Command(gcc, "-x", "c", "-o", bin, "-")
	cc.Stdin = &src
	out, err := cc.CombinedOutput()
	if err != nil {
		t.Skipf("the kernel's headers are too old or do not compile: %v\n%s", err, out)
	}
	out, err = exec.Command(bin).Output()
	require.NoError(t, err)
	lines := strings.Fields(string(out))
	require.Len(t, lines, len(exprs))
	got := make([]uint64, len(lines))
	for i, l := range lines {
		got[i], err = strconv.ParseUint(l, 10, 64)
		require.NoError(t, err)
	}
	return got
}
