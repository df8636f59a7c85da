package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/vmm"
)

var goodHost = vmm.HostInfo{Virtualization: vmm.SVM, MaxCPUs: 1024, InstructionRate: 2e9}

// tree makes files below a directory of the test's own.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	return root
}

func TestDoctorFindings(t *testing.T) {
	with := func(change func(*vmm.HostInfo)) vmm.HostInfo {
		info := goodHost
		change(&info)
		return info
	}
	absent := &fs.PathError{Op: "open", Path: vmm.KVMDevice, Err: syscall.ENOENT}
	denied := &fs.PathError{Op: "open", Path: vmm.KVMDevice, Err: syscall.EACCES}
	const thp = "sys/kernel/mm/transparent_hugepage/enabled"
	for name, tc := range map[string]struct {
		groups  []int
		files   map[string]string
		info    vmm.HostInfo
		err     error
		beneath error
		list    []kernel.Kernel
		boots   bool
		name    string
		level   level
		says    string
		fix     string
	}{
		"all well":  {info: goodHost, boots: true, name: "kvm", level: levelOK, says: "up to 255 vCPUs"},
		"few vCPUs": {info: with(func(i *vmm.HostInfo) { i.MaxCPUs = 8 }), boots: true, name: "kvm", level: levelOK, says: "up to 8 vCPUs"},
		"no KVM, AMD": {info: vmm.HostInfo{Virtualization: vmm.SVM}, err: absent,
			name: "kvm", level: levelFail, says: "there is no /dev/kvm", fix: "sudo modprobe kvm_amd"},
		"no KVM, Intel": {info: vmm.HostInfo{Virtualization: vmm.VMX}, err: absent,
			name: "kvm", level: levelFail, says: "there is no /dev/kvm", fix: "sudo modprobe kvm_intel"},
		"no KVM in a VM": {info: vmm.HostInfo{Virtualization: vmm.NoVirtualization, InVM: true}, err: absent,
			name: "kvm", level: levelFail, says: "there is no /dev/kvm", fix: "enable nested virtualization for this VM"},
		"no KVM, switched off": {info: vmm.HostInfo{Virtualization: vmm.NoVirtualization}, err: absent,
			name: "kvm", level: levelFail, says: "there is no /dev/kvm", fix: "firmware"},
		"no KVM in a container": {files: map[string]string{".dockerenv": ""}, info: vmm.HostInfo{Virtualization: vmm.SVM}, err: absent,
			name: "kvm", level: levelFail, says: "there is no /dev/kvm", fix: "--device /dev/kvm"},
		"no module": {info: vmm.HostInfo{Virtualization: vmm.SVM}, err: syscall.ENODEV,
			name: "kvm", level: levelFail, says: "no KVM behind it", fix: "modprobe kvm_amd"},
		"not KVM": {files: map[string]string{"dev/kvm": "a file"}, info: vmm.HostInfo{Virtualization: vmm.SVM}, err: errors.New("inappropriate"),
			name: "kvm", level: levelFail, says: "/dev/kvm isn't KVM: inappropriate", fix: "modprobe kvm_amd"},
		"no permission": {info: vmm.HostInfo{Virtualization: vmm.SVM}, err: denied,
			files: map[string]string{"dev/kvm": ""},
			name:  "kvm", level: levelFail, says: "no permission", fix: "usermod -aG kvm tester"},
		"busy": {info: vmm.HostInfo{Virtualization: vmm.VMX}, err: syscall.EBUSY,
			name: "kvm", level: levelFail, says: "busy", fix: "other hypervisor"},
		"PVM": {info: with(func(i *vmm.HostInfo) { i.Virtualization, i.InstructionRate = vmm.NoVirtualization, 1.3e6 }),
			name: "virtualization", level: levelFail, says: "1.3 million instructions", fix: "VMX or SVM"},
		"SVM": {info: goodHost, boots: true, name: "virtualization", level: levelOK, says: "svm; a test guest ran at 2000.0 million"},
		"missing capability": {info: with(func(i *vmm.HostInfo) { i.Missing = []string{"KVM_CAP_IRQFD"} }),
			name: "capabilities", level: levelFail, says: "KVM lacks KVM_CAP_IRQFD", fix: "newer Linux"},
		"nested": {info: with(func(i *vmm.HostInfo) { i.InVM = true }), boots: true,
			name: "nested", level: levelOK, says: "itself a virtual machine"},
		"not nested, could nest": {files: map[string]string{"sys/module/kvm_amd/parameters/nested": "1\n"}, info: goodHost, boots: true,
			name: "nested", level: levelOK, says: "not a virtual machine; its KVM could nest"},
		"no tun": {info: goodHost, boots: true, name: "tun", level: levelWarn, says: "no /dev/net/tun", fix: "modprobe tun"},
		"tun": {files: map[string]string{"dev/net/tun": ""}, info: goodHost, boots: true,
			name: "tun", level: levelOK, says: "can be used: a network over a tap device is possible; whether vole may make one (create) is not known"},
		"tun of root": {files: map[string]string{"dev/net/tun": "", "proc/self/status": "Name:\tvole\nCapEff:\t000001ffffffffff\n"}, info: goodHost, boots: true,
			name: "tun", level: levelOK, says: "vole may make one"},
		"tun of a user": {files: map[string]string{"dev/net/tun": "", "proc/self/status": "CapEff:\t0000000000000000\n"}, info: goodHost, boots: true,
			name: "tun", level: levelOK, says: "making one takes root: sudo ip tuntap add"},
		"no vhost": {info: goodHost, boots: true, name: "vhost-net", level: levelWarn, says: "no /dev/vhost-net", fix: "modprobe vhost_net"},
		"vhost": {files: map[string]string{"dev/vhost-net": ""}, info: goodHost, boots: true,
			name: "vhost-net", level: levelOK, says: ",vhost is possible"},
		"pings": {files: map[string]string{"proc/sys/net/ipv4/ping_group_range": "0\t2147483647\n"}, groups: []int{100}, info: goodHost, boots: true,
			name: "user network", level: levelOK, says: "guests can ping"},
		"no pings": {files: map[string]string{"proc/sys/net/ipv4/ping_group_range": "1\t0\n"}, groups: []int{0, 100}, info: goodHost, boots: true,
			name: "user network", level: levelWarn, says: "work without any rights, but guests can't ping", fix: "ping_group_range"},
		"pings unknown": {info: goodHost, boots: true, name: "user network", level: levelOK, says: "not known"},
		"huge pages": {files: map[string]string{thp: "always [madvise] never\n", "proc/meminfo": "HugePages_Total: 9\nHugePages_Free:        7\n"}, info: goodHost, boots: true,
			name: "huge pages", level: levelOK, says: "anonymous memory: madvise, for memfd: unknown; reserved and free: 7"},
		"no huge pages": {files: map[string]string{thp: "always madvise [never]\n"}, info: goodHost, boots: true,
			name: "huge pages", level: levelWarn, says: "never", fix: "echo madvise"},
		"kernels": {list: []kernel.Kernel{{Path: "a"}, {Path: "b", Err: fs.ErrPermission}}, info: goodHost, boots: true,
			name: "kernels", level: levelOK, says: "1 found"},
		"no kernels": {info: goodHost, boots: true, name: "kernels", level: levelWarn, says: "none found", fix: "--kernel"},
		"unreadable kernel": {list: []kernel.Kernel{{Path: "/boot/vmlinuz-6.1", Err: fmt.Errorf("open: %w", fs.ErrPermission)}}, info: goodHost, boots: true,
			name: "kernels", level: levelWarn, says: "/boot/vmlinuz-6.1 may not be read", fix: "sudo chmod a+r /boot/vmlinuz-6.1"},
		"files":    {info: goodHost, boots: true, name: "shared files", level: levelOK, says: "vole exec"},
		"no files": {info: goodHost, beneath: unix.ENOSYS, boots: true, name: "shared files", level: levelWarn, says: "openat2: function not implemented: no vole exec", fix: "Linux 5.6"},
	} {
		t.Run(name, func(t *testing.T) {
			p := &patient{root: tree(t, tc.files), user: "tester", groups: tc.groups, info: tc.info, err: tc.err, kernels: tc.list, beneath: tc.beneath}
			d := p.examine()
			assert.Equal(t, tc.boots, d.CanBoot)
			i := 0
			for i < len(d.Findings) && d.Findings[i].Name != tc.name {
				i++
			}
			require.Less(t, i, len(d.Findings), "%v", d.Findings)
			f := d.Findings[i]
			assert.Equal(t, tc.level, f.Level)
			assert.Contains(t, f.Says, tc.says)
			assert.Contains(t, f.Fix, tc.fix)
			if tc.fix == "" {
				assert.Empty(t, f.Fix)
			}
			for _, f := range d.Findings {
				assert.True(t, f.Level != levelFail || !d.CanBoot, "%v", f)
			}
		})
	}
}

// TestDoctorNoDriver: a file in /dev that nothing is behind can't be used.
func TestDoctorNoDriver(t *testing.T) {
	root := tree(t, map[string]string{"dev/net/x": ""})
	for _, name := range []string{"dev/net/tun", "dev/vhost-net"} {
		// A socket can't be opened either: ENXIO.
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		t.Chdir(root) // a socket's path may be short only
		require.NoError(t, unix.Bind(fd, &unix.SockaddrUnix{Name: name}))
	}
	d := (&patient{root: root, info: goodHost}).examine()
	for _, name := range []string{"tun", "vhost-net"} {
		i := slices.IndexFunc(d.Findings, func(f finding) bool { return f.Name == name })
		require.GreaterOrEqual(t, i, 0)
		assert.Equal(t, levelWarn, d.Findings[i].Level)
		assert.Contains(t, d.Findings[i].Says, "has no driver in this kernel")
	}
}

// TestDoctorPermission: the command that mends it names the group that the device belongs to.
func TestDoctorPermission(t *testing.T) {
	root := tree(t, map[string]string{"dev/kvm": "", "etc/group": "root:x:0:\nkvm:x:104:\nvirt:x:4242:a,b\n"})
	dev := filepath.Join(root, "dev/kvm")
	if err := os.Chown(dev, -1, 4242); err != nil {
		t.Skipf("needs root, to give a file to another group: %v", err)
	}
	p := &patient{root: root, user: "tester", err: fs.ErrPermission}
	require.NoError(t, os.Chmod(dev, 0o660))
	assert.Equal(t, "sudo usermod -aG virt tester, then log in again (or: newgrp virt)", p.fixPermission())
	p.groups = []int{4242}
	assert.Contains(t, p.fixPermission(), "you are in it")
	require.NoError(t, os.Chmod(dev, 0o600))
	assert.Contains(t, p.fixPermission(), "sudo chgrp kvm /dev/kvm")
}

func TestDoctorPrint(t *testing.T) {
	d := &diagnosis{}
	d.add(levelFail, "kvm", "sudo modprobe kvm_amd", "there is no %s", "/dev/kvm")
	d.add(levelOK, "tun", "", "fine")
	var b bytes.Buffer
	require.NoError(t, d.print(&b))
	assert.Equal(t, `FAIL  kvm             there is no /dev/kvm
                        fix: sudo modprobe kvm_amd
ok    tun             fine

A stock kernel can't boot here.
`, b.String())
}

// TestDoctorHere: whatever this host is, doctor says it and means it.
func TestDoctorHere(t *testing.T) {
	r := vole(t, "doctor")
	switch r.code {
	case codeOK:
		assert.NotContains(t, r.stdout, "FAIL")
		assert.Contains(t, r.stdout, "\nA stock kernel can boot here.\n")
	case codeHost:
		assert.Contains(t, r.stdout, "FAIL")
		assert.Contains(t, r.stdout, "\nA stock kernel can't boot here.\n")
	default:
		t.Fatalf("exit code %d", r.code)
	}
	assert.Empty(t, r.stderr)
	j := vole(t, "doctor", "--json")
	assert.Equal(t, r.code, j.code)
	assert.Contains(t, j.stdout, fmt.Sprintf(`"can_boot": %v`, r.code == codeOK))
}
