// The effect's identity. The major number changes when saved scripts would break, the minor one with every release.
#pragma once

namespace stm {

inline constexpr const char* identifier = "org.stm-for-nuke.STM";
inline constexpr int majorVersion = 1;
inline constexpr int minorVersion = 0;
inline constexpr const char* versionLabel = "0.1.0";

}  // namespace stm
