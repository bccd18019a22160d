"""Frequencies of the Gaussian table with 128 scales from 0.11 to 16 (docs/bitstream.md), as integers.

An array [17, 128] uint16: frequency of the symbols -8 .. 8 for each scale, 0 where the symbol escapes. Stored as
differences along the scales modulo 65536, all low bytes and then all high bytes, zlib, base 85.
"""

PACKED_FREQUENCIES = (
    "c-muNpb}tWVrAvz5fGPE)iJYm_X~|nOij<oNKJ|j3-ofbGSXI*7UE%L`0@4q>t~N2-oJC}=Jo5>uU@@I6}uUkSy(u@g+yglb<G`pg5y$h3rot&ON(+"
    "d5+eiL?M-!+rG&Yde}DV%`sw3)w{Kj#a{1DQ3+F-TBE?n%?PlfT6P8reHnaB$PslB;Ywqam?rdqOEXs%r@v=A3lo#V+`SbPdi-&h_Ub}eV?CFyyPn<"
    "Y${KWB-r%s(dLy^@iENtBTKwlf!dW0nx)pbspy<o}Gr3+?H?rA8=it%?g(~=Y7`1|$k(|b2ApFMr-@Sy|y_U+lTd+*+T`}Q9^aQNtv<0r_mmw}OqnU"
    "#}QNJ>f1(la8XvUBE&EqjljK6m=mp`Gg&Piw14i*&cplICUn_Uhq{3nvfn+qrG?#<lBKuU@@o^}4m|*Kgdsb=!_zyZ0VAc=#v@wt~|bJGX$iqK<_}R"
    "Bq$+H3u(0{ldV`%frq3``v@{dsj?r$O>~dkmmjM_Ws4=d$+7zwqW**sS_vmPw4NTIAO}<X)|Wep1*MM(iN-LuivzF+s-|E4;*47n6y|qxCA8>buD}o"
    "%KBCux%WrHz#}H7vZ1N5GC$78M2_+4iIqJCL1uC+?{6I2vUploLur0`a$HnYM0j{aWOQsoVroWCeo;kbU1MuUU;mUDv*s>bx?=UZ4V$;^+O_Wh*nTE"
    "9HXZ?>9X7u475%GEJm=8x$n0Ek<iQU?Wm8Ar(8!2TUk3vz#>a=}mHR4vJ25-YS>nUVWi2V5`Vy?4A74LnWdF{sTefW7wrlUfV`na3zyI{@mtV}Bg5v"
    "UOx+Yc*9)7`5329k{rB(H<9laB$&6vAj+49xvH*DFlbMOA&K<oeg{`TqR{R{h+b*4KAJzSM<^l?MJ-n)(Ej{FaHOe>4=wA9g5QPVcI_lnPJn!f({gP"
    "%gW9!a&+H=TL<U)<0mp{!@|j<ff_ut{m!`b6hcbxm8gVgISCk6wRg;1ZTm)it$s@d=7dOvx=MuW4%O>7P6um`azeUb|uQjvagUgQJxhn0rBCZ0(a+H"
    "evP2=j<AunVrjz-v7ym=KuL+)b>9k;bM)0TLA2~_);3gKWXWonT4HOP+WnE>7UH}&%(+<=lqW)YJf#AIpyD;J(QJyXpUeSsPcbM)PIAb{wE&%M+XCG"
    "Hy!Q&j|&W-)wH+&KVd+5-U9=Y?IquSMl?W<tpx0co6Up*knMvT@DB$d!2u|Iklw#Q@CO8bV+ViW;4cD@=Y)aw|DcTjL7n~wS^gi)<=>zv{|80=htmx"
    "Jr!{G#"
)
