package wire

// ConfigFile is where the agent finds its [Config], in JSON, in the initramfs.
const ConfigFile = "etc/vole/agent.json"

// DefaultPort is the host's vsock port that the agent connects to.
const DefaultPort = 1718579813

// Config is what an agent does before it takes commands.
type Config struct {
	// Port is the host's vsock port to connect to.
	Port uint32 `json:"port"`
	// Secret is what its connections begin with. ConfigFile is for root alone to read,
	// and removed when it has been.
	Secret Secret `json:"secret"`
	// Modules are files of kernel modules in the initramfs, in the order in which
	// they load. One that the kernel has already is no error.
	Modules []string `json:"modules,omitempty"`
	// Root is the file system to run commands on; nil is the initramfs.
	Root *Root `json:"root,omitempty"`
	// Mounts come after the root, in their order.
	Mounts []Mount `json:"mounts,omitempty"`
	// Hostname is the guest's name; empty is the kernel's.
	Hostname string `json:"hostname,omitempty"`
	// Net configures the first network device; nil leaves it down. The loopback
	// device is always up.
	Net *Net `json:"net,omitempty"`
	// CorePattern goes to /proc/sys/kernel/core_pattern, and commands may dump
	// cores then; empty is none.
	CorePattern string `json:"core-pattern,omitempty"`
	// Command is started at once, without a word of the host.
	Command *Command `json:"command,omitempty"`
}

// Root is a shared directory of the host that becomes the guest's root.
type Root struct {
	// Tag is the virtio file system.
	Tag string `json:"tag"`
	// Overlay lays a file system in the guest's memory over it: what is written is
	// gone with the guest. Without it the share is the root as it is.
	Overlay bool `json:"overlay,omitempty"`
	// Writable are absolute paths of the share that are not overlaid: what is
	// written there is written on the host. With "/" among them there is no overlay
	// at all. What is the guest's own (/proc, /sys, /dev, /run) stays that, but for
	// paths below /run and /dev/shm.
	Writable []Text `json:"writable,omitempty"`
	// Visible are absolute paths of the share below /run and /dev/shm that are not
	// hidden by the guest's own, as the host lets them be used.
	Visible []Text `json:"visible,omitempty"`
	// ModulesDir is an absolute path of the share with the running kernel's
	// modules, to appear as /lib/modules/RELEASE; empty is none.
	ModulesDir Text `json:"modules-dir,omitempty"`
}

// Mount is a shared directory somewhere else.
type Mount struct {
	Tag      string `json:"tag"`
	Dir      Text   `json:"dir"` // made if it isn't there
	ReadOnly bool   `json:"read-only,omitempty"`
}

// Net is an address of the guest, as the host's user-mode network gives it.
type Net struct {
	// Addresses and Gateways are of either family, the addresses with their
	// prefix lengths: "10.0.2.15/24".
	Addresses []string `json:"addresses"`
	Gateways  []string `json:"gateways,omitempty"`
	// DNS are the servers for /etc/resolv.conf.
	DNS []string `json:"dns,omitempty"`
	// MTU is the device's; 0 leaves it.
	MTU int `json:"mtu,omitempty"`
}
